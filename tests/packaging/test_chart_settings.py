"""The variables that the chart sets are settings of the programs, with values that they take."""

from typing import Any

import helm_python
import pytest

from dispatcher.settings import DispatcherSettings
from tests.packaging.chart import EVERYTHING, LEAST, MATRIX, Manifest, find, job_template, render
from trainer.settings import TrainerSettings

SECRETS = {
    "AMQP_URL": "amqp://broker",
    "WEBHOOK_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "NAMESPACE": "ml",
}
OTHERS_OF_THE_TRAINER = {"HF_HOME", "HF_HUB_OFFLINE"}

every_set_of_values = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX.keys())


def _variables(container: Manifest, own: set[str]) -> dict[str, str]:
    """The container's environment, without what the test itself put in; secrets have some value."""
    return {
        entry["name"]: entry.get("value", SECRETS.get(entry["name"], "secret"))
        for entry in container["env"]
        if entry["name"] not in own
    }


@every_set_of_values
def test_the_dispatcher_starts_with_its_variables(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = find(render(values), "Deployment", "lora-trainer")["spec"]["template"]["spec"]
    variables = _variables(pod["containers"][0], own={"POD"})
    assert {name.lower() for name in variables} <= set(DispatcherSettings.model_fields)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = DispatcherSettings.from_environment()
    assert settings.job_backend == "kubernetes"
    assert settings.health_port == pod["containers"][0]["ports"][0]["containerPort"]
    assert settings.lease_name == "lora-trainer"


def test_a_file_that_a_variable_of_the_dispatcher_names_is_there_for_its_check_too() -> None:
    """`helm test` said of a backend with a private CA that it cannot be reached."""
    manifests = render(EVERYTHING)
    [check] = [it for it in manifests if it["kind"] == "Pod" and it["metadata"]["name"].endswith("-check")]
    for pod in (
        find(manifests, "Deployment", "lora-trainer")["spec"]["template"]["spec"],
        check["spec"],
    ):
        given = EVERYTHING["dispatcher"]
        assert pod["volumes"][-1:] == given["extraVolumes"]
        assert pod["containers"][0]["volumeMounts"][-1:] == given["extraVolumeMounts"]


@every_set_of_values
def test_the_trainer_starts_with_its_variables(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    container = job_template(render(values))["spec"]["template"]["spec"]["containers"][0]
    variables = _variables(container, own=set())
    unknown = {name for name in variables if name.lower() not in TrainerSettings.model_fields}
    assert {name for name in unknown if not name.startswith("AWS_")} <= OTHERS_OF_THE_TRAINER
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = TrainerSettings.from_environment()
    gpus = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    wanted = values.get("trainer", {}).get("requireCuda", True)
    assert settings.require_cuda is (wanted and gpus > 0)


def _values(text: str) -> dict[str, Any]:
    """LEAST with what a values file says, whose numbers Helm reads as floating point."""
    return {**LEAST, **helm_python.values_from_yaml(text)}


def test_a_number_of_a_values_file_reaches_the_programs_with_all_its_digits() -> None:
    """As 2.0261124e+07 a seed stops the trainer, and a limit the dispatcher."""
    manifests = render(
        _values(
            "trainer: {extraEnv: {SEED: 20261124, LEARNING_RATE: 0.0001, SAVE_SAMPLES: true, TEXT: '1e5'}}\n"
            "dispatcher: {maxActiveJobs: 10000000, startGraceSeconds: 10000000, progressSeconds: 0.5}"
        )
    )
    trainer = _variables(job_template(manifests)["spec"]["template"]["spec"]["containers"][0], own=set())
    assert (trainer["SEED"], trainer["LEARNING_RATE"]) == ("20261124", "0.0001")
    assert (trainer["SAVE_SAMPLES"], trainer["TEXT"]) == ("true", "1e5")
    pod = find(manifests, "Deployment", "lora-trainer")["spec"]["template"]["spec"]
    dispatcher = _variables(pod["containers"][0], own=set())
    assert (dispatcher["MAX_ACTIVE_JOBS"], dispatcher["START_GRACE_SECONDS"]) == ("10000000", "10000000")
    assert dispatcher["PROGRESS_SECONDS"] == "0.5"


def test_a_variable_of_ones_own_takes_the_place_of_the_charts() -> None:
    """Two sources in one variable are refused by the API server."""
    own = {"valueFrom": {"configMapKeyRef": {"name": "mine", "key": "k"}}}
    values = {
        **EVERYTHING,
        "dispatcher": {"extraEnv": {"NAMESPACE": own, "AMQP_URL": "amqp://mine", "BACKEND_URL": own}},
        "trainer": {
            "extraEnv": {"AWS_ACCESS_KEY_ID": own, "AWS_SECRET_ACCESS_KEY": "mine", "S3_BUCKET": own}
        },
    }
    manifests = render(values)
    pod = find(manifests, "Deployment", "lora-trainer")["spec"]["template"]["spec"]
    trainer = job_template(manifests)["spec"]["template"]["spec"]["containers"][0]["env"]
    for environment, wanted in (
        (pod["containers"][0]["env"], values["dispatcher"]["extraEnv"]),
        (trainer, values["trainer"]["extraEnv"]),
    ):
        found = [entry for entry in environment if entry["name"] in wanted]
        assert sorted(found, key=lambda entry: str(entry["name"])) == [
            {"name": name, **(value if isinstance(value, dict) else {"value": value})}
            for name, value in sorted(wanted.items())
        ]
