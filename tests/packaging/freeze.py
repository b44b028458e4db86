"""Write down what an upgrade from this version must find again: python -m tests.packaging.freeze

Made once for each release, never again for the same one: releases/{version}.yaml holds the fields that the
API server lets nobody change, the claims that hold data, and a Job as this version made it, with how it ends.
"""

import sys
from typing import Any, Final

import yaml

from dispatcher.job import JobOptions, build_job
from job_contract.outcome import TrainingResult, encode
from job_contract.request import TrainingRequest
from tests.packaging.chart import CHART, LEAST, Manifest, job_template, render

RELEASES: Final = CHART.parents[1] / "tests" / "packaging" / "releases"
_REQUEST: Final = TrainingRequest(style_id=42, image_paths=["/a.jpg"], task_id="before-the-upgrade")
_RESULT: Final = TrainingResult(
    model_path="/models/42/lora_weights.safetensors", loss=0.1, epochs=100, seconds=60
)


def lasting(manifests: list[Manifest]) -> dict[str, Any]:
    """Return what has to stay as it is, by kind and name."""
    kept: dict[str, Any] = {}
    for item in manifests:
        if "helm.sh/hook" in (item["metadata"].get("annotations") or {}):
            continue  # made anew whenever it is run
        name, spec = f"{item['kind']}/{item['metadata']['name']}", item.get("spec", {})
        match item["kind"]:
            case "Deployment":
                kept[name] = {"selector": spec["selector"]}
            case "PersistentVolumeClaim":
                kept[name] = {"spec": spec, "annotations": item["metadata"].get("annotations")}
            case "RoleBinding":
                kept[name] = {"roleRef": item["roleRef"]}
            case "CronJob":  # its name is in the README's commands
                kept[name] = {"suspend": spec["suspend"]}
    return kept


def main() -> int:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    manifests = render(LEAST)
    frozen = {
        "objects": lasting(manifests),
        "job": build_job(_REQUEST, job_template(manifests), JobOptions(instance="lora-trainer")),
        "termination_message": encode(_RESULT).decode(),
    }
    path = RELEASES / f"{version}.yaml"
    with path.open("x") as file:
        yaml.safe_dump(frozen, file, sort_keys=False, width=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
