"""A Job that the API server takes, for the tests of the parts."""

from typing import Any


def job(name: str, **spec: Any) -> dict[str, Any]:
    """Return the manifest of a Job with the relay's finalizer and podFailurePolicy; spec overrides."""
    container = {"name": "trainer", "image": "trainer:1", "command": ["train"]}
    policy = {
        "rules": [
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": "trainer", "operator": "In", "values": [64, 65, 78]},
            },
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "labels": {"app": "lora-trainer", "style": name},
            "finalizers": ["lora-trainer.io/status-relay"],
        },
        "spec": {
            "backoffLimit": 1,
            "podFailurePolicy": policy,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
            **spec,
        },
    }
