"""Literal statuses of Jobs and pods, as Kubernetes 1.31 and later write them."""

from typing import Any

from dispatcher.diagnosis import VERDICT_ANNOTATION

RESULT = '{"model_path":"/models/42/lora_weights.safetensors","loss":0.1,"epochs":200,"seconds":61.5}'
BAD_IMAGE = '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is truncated; send it again."}'
STARTED = "2026-11-24T08:00:00Z"


def condition(kind: str, reason: str = "", message: str = "", status: str = "True") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": STARTED,
        "lastTransitionTime": "2026-11-24T08:05:00Z",
    }


FAILURE_TARGET = condition(
    "FailureTarget", "BackoffLimitExceeded", "Job has reached the specified backoff limit"
)
FAILED = condition("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
CRITERIA_MET = condition(
    "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
)
COMPLETE = condition("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
SUSPENDED = condition("Suspended", "JobResumed", "Job resumed", status="False")


def job(
    *conditions: dict[str, Any], deleting: bool = False, verdict: str = "", **status: Any
) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "lora-42", "uid": "u", "creationTimestamp": STARTED}
    if deleting:
        metadata["deletionTimestamp"] = STARTED
    if verdict:
        metadata["annotations"] = {VERDICT_ANNOTATION: verdict}
    return {
        "metadata": metadata,
        "spec": {"activeDeadlineSeconds": 7200},
        "status": {"conditions": list(conditions), **status} if conditions else status,
    }


def pod(
    state: dict[str, Any] | None = None, name: str = "p1", created: str = STARTED, **status: Any
) -> dict[str, Any]:
    containers = [{"name": "trainer", "image": "trainer:1", "state": state}] if state is not None else []
    sidecar = {"name": "sidecar", "state": {"running": {"startedAt": STARTED}}}
    return {
        "metadata": {"name": name, "creationTimestamp": created},
        "status": {"phase": "Pending", "containerStatuses": [sidecar, *containers], **status},
    }


def ended(code: int, message: str = "", reason: str = "", **more: Any) -> dict[str, Any]:
    terminated = {
        "exitCode": code,
        "reason": reason or ("Error" if code else "Completed"),
        "startedAt": STARTED,
    }
    return pod(
        {"terminated": {**terminated, **({"message": message} if message else {})}},
        **{"phase": "Failed" if code else "Succeeded", **more},
    )


def running(name: str = "p1", created: str = STARTED) -> dict[str, Any]:
    return pod({"running": {"startedAt": STARTED}}, name, created, phase="Running")


def waiting(reason: str, message: str = "", **status: Any) -> dict[str, Any]:
    return pod({"waiting": {"reason": reason, "message": message}}, **status)


DISRUPTED = condition("DisruptionTarget", "PreemptionByScheduler", "default-scheduler: preempting")
