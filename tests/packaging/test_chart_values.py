"""values.yaml and its schema: what is refused, and with which words."""

import json
from typing import Any

import helm_python
import pytest
import yaml

from tests.packaging.chart import CHART, LEAST, MATRIX, render, render_files


def _merged(path: str, value: Any) -> dict[str, Any]:
    """LEAST with one value at a dotted path."""
    values: dict[str, Any] = json.loads(json.dumps(LEAST))
    *parents, last = path.split(".")
    where = values
    for parent in parents:
        where = where.setdefault(parent, {})
    where[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ampq", {"url": "amqp://x"}),
        ("nameOverride", "LoRA"),
        ("nameOverride", "-x"),
        ("fullnameOverride", "my_trainer"),
        ("fullnameOverride", "a..b"),
        ("amqp.existingsecret", "broker"),
        ("amqp.url", "http://broker"),
        ("backend.url", "backend.example.com"),
        ("backend.webhookSecret", "secret"),
        ("backend.allowedHosts", ["a,b"]),
        ("s3.prefix", "/models/"),
        ("s3.prefix", ""),
        ("models.size", "50 GB"),
        ("models.accessModes", []),
        ("models.accessModes", ["ReadOnlyMany"]),
        ("baseModel.id", "sd15"),
        ("baseModel.path", "base"),
        ("baseModel.cache.enable", True),
        ("dispatcher.replicas", "two"),
        ("dispatcher.maxActiveJobs", -1),
        ("dispatcher.image.digest", "latest"),
        ("dispatcher.resources.limit", {}),
        ("trainer.gpus", 0.5),
        ("trainer.gpu", 1),
        ("trainer.gpuResource", "gpu"),
        ("trainer.image.repository", ""),
        ("trainer.image.pullPolicy", "Sometimes"),
        ("trainer.backoffLimit", -1),
        ("trainer.deadlineSeconds", 0),
        ("trainer.extraEnv", {"A B": "x"}),
        ("trainer.extraEnv", {"A": {"value": "x"}}),
        ("trainer.extraEnv", [{"name": "A", "value": "x"}]),
        ("trainer.labels", {"a": 1}),
        ("networkPolicy.trainer.blockedCidrs", ["169.254.169.254"]),
        ("metrics.serviceMonitor.interval", "30"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(path: str, value: Any) -> None:
    with pytest.raises(helm_python.HelmValuesError) as caught:
        render(_merged(path, value))
    assert path.rpartition(".")[2] in str(caught.value) or path.rpartition(".")[0].replace(".", "/") in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"backend": {"url": "http://b"}}, "Where is RabbitMQ?"),
        (_merged("fullnameOverride", "2026"), "YAML does not read 2026 as text"),
        (_merged("fullnameOverride", "1.5"), "YAML does not read 1.5 as text"),
        (_merged("fullnameOverride", "true"), "YAML does not read true as text"),
        ({"amqp": {"existingSecret": "x"}}, "Where do statuses go?"),
        ({**LEAST, "rabbitmq": {"dev": True}}, "rabbitmq.dev brings a broker"),
        (_merged("amqp.url", "amqp://x"), "not both"),
        (_merged("backend", {"url": "http://b", "existingSecret": "x", "token": "y"}), "not both"),
        (_merged("s3", {"existingSecret": "x", "accessKeyId": "y", "secretAccessKey": "z"}), "not both"),
        (_merged("s3.accessKeyId", "y"), "belong together"),
        (_merged("baseModel", {"path": "/x", "image": "y"}), "not both"),
        (_merged("baseModel", {"offline": True, "cache": {"enabled": False}}), "offline needs the model"),
        (_merged("dispatcher.podDisruptionBudget.enabled", True), "block node drains"),
        (
            _merged("metrics", {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}),
            "counted twice",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused_with_the_remedy(
    values: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(helm_python.HelmError, match=sentence.replace("?", r"\?")):
        render(values)


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())
@pytest.mark.parametrize("version", ["v1.31.0", "v1.37.0"])
def test_helm_lint_finds_nothing(values: dict[str, Any], version: str) -> None:
    report = helm_python.lint(CHART, values, strict=True, kube_version=version)
    faults = [message for message in report["messages"] if message["severity"] > 1]
    assert (faults, report["errors"]) == ([], [])


def test_schema_and_values_name_the_same_things() -> None:
    """A value without schema could be misspelt; a schema without value is documented nowhere."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(values)
    del schema["properties"]["global"]  # Helm's own

    def compare(node: dict[str, Any], value: dict[str, Any], path: str) -> None:
        reference = node.get("$ref", "").removeprefix("#/definitions/")
        node = schema["definitions"][reference] if reference else node
        if node.get("additionalProperties") is not False or reference == "resources":
            return
        assert set(node["properties"]) == set(value), path
        for name, child in node["properties"].items():
            if isinstance(value[name], dict):
                compare(child, value[name], f"{path}.{name}")

    compare(schema, values, "values")


def test_notes_name_this_release_in_commands() -> None:
    notes = render_files({**LEAST, "rabbitmq": {"dev": False}}, name="styles")["NOTES.txt"]
    assert "helm test styles --namespace ml" in notes
    assert "deploy/styles-lora-trainer -- python -m dispatcher submit" in notes
    assert "app.kubernetes.io/instance=styles," in notes
    assert "try-out" not in notes
    assert "No backend token is set" in notes
