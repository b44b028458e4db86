"""The variables that the chart sets are settings of the programs, with values that they take."""

from typing import Any

import pytest

from dispatcher.settings import DispatcherSettings
from tests.packaging.chart import MATRIX, Manifest, find, job_template, render
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
