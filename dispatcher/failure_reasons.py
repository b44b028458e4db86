"""Why a Job failed: its conditions and pods become one sentence that tells a person what to do. Pure."""

import re
from collections.abc import Sequence
from typing import Final

from dispatcher.deadline import own_seconds
from dispatcher.job import Manifest
from dispatcher.pod_status import condition, disruption, short, terminated
from job_contract.outcome import ExitCode, FailureCode, TrainingFailure, decode

_NO_DEVICE_REASONS: Final = ("UnexpectedAdmissionError", "OutOf")
"""A kubelet that has no healthy GPU, or none left, for a pod that the scheduler sent it."""
_EXIT_CODE: Final = re.compile(r"\bexit code (\d+)\b")
"""In the message of reason PodFailurePolicy: `Container trainer for pod ... failed with exit code 65 ...`."""
_BY_EXIT_CODE: Final[dict[int, tuple[FailureCode, str]]] = {
    ExitCode.USAGE: (
        FailureCode.INVALID_REQUEST,
        "The trainer was called in a way that it does not know (exit code 64); "
        "check the command in the Job template against the trainer's image",
    ),
    ExitCode.BAD_DATA: (
        FailureCode.INVALID_REQUEST,
        "The trainer refused an image or a field of the request (exit code 65); "
        "check the images and the request, then send it again",
    ),
    ExitCode.BAD_CONFIG: (
        FailureCode.TRAINING_ERROR,
        "The trainer refused its configuration (exit code 78); "
        "check its settings, its base model and the node's GPU, then send the request again",
    ),
}
_GONE: Final = "its pods are gone, and with them what they had to say"


def failure_of_job(job: Manifest, pods: Sequence[Manifest]) -> TrainingFailure:
    """Say why a Job with a Failed condition failed; pods are in the order in which they were made."""
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        own = own_seconds(job)
        within = f" within its {own} seconds" if own else ""
        return TrainingFailure(
            failure_code=FailureCode.DEADLINE_EXCEEDED,
            failure_reason=f"The training did not finish{within}; use fewer epochs or images, "
            "or raise the deadline (JOB_DEADLINE_SECONDS).",
        )
    return _last_failure(pods) or _failure_without_pods(failed)


def failure_without_file(model_path: str) -> TrainingFailure:
    """Say that a trainer has reported weights which are not there."""
    return TrainingFailure(
        failure_code=FailureCode.STORAGE_ERROR,
        failure_reason=f"The trainer reported {model_path}, but no file is there; "
        "check the disk and the models folder, then send the request again.",
    )


def _failure_without_pods(failed: Manifest) -> TrainingFailure:
    """A TTL that ran out while no dispatcher ran takes the pods first; the condition is what is left."""
    message = failed.get("message") or ""
    found = _EXIT_CODE.search(message) if failed.get("reason") == "PodFailurePolicy" else None
    known = _BY_EXIT_CODE.get(int(found[1])) if found else None
    if known:
        code, sentence = known
        return TrainingFailure(failure_code=code, failure_reason=f"{sentence}; {_GONE}.")
    if failed.get("reason") == "BackoffLimitExceeded":
        return TrainingFailure(
            failure_code=FailureCode.TRAINING_ERROR,
            failure_reason=f"Every attempt of the training failed ({short(message)}); {_GONE}. "
            "Look at training.log in the style's models folder, then send the request again.",
        )
    detail = message or failed.get("reason") or "no reason was given"
    return TrainingFailure(
        failure_code=FailureCode.TRAINING_ERROR,
        failure_reason=f"The Job failed ({short(detail)}); {_GONE}. "
        "Send the request again, and look at the trainer's log while it runs.",
    )


def _last_failure(pods: Sequence[Manifest]) -> TrainingFailure | None:
    for pod in reversed(pods):
        ended = terminated(pod)
        if ended and ended.get("exitCode") != 0:
            return _failure_of_container(pod, ended)
        if pod.get("status", {}).get("phase") == "Failed":
            return _failure_of_pod(pod)
    return None


def _failure_of_container(pod: Manifest, ended: Manifest) -> TrainingFailure:
    message = decode(ended.get("message"))
    code, reason = ended.get("exitCode"), ended.get("reason")
    if reason == "OOMKilled":
        return TrainingFailure(
            failure_code=FailureCode.OUT_OF_MEMORY,
            failure_reason="The trainer used more memory than its container may; "
            "raise the memory limit of the training Job.",
        )
    taken_away = disruption(pod) or pod["status"].get("reason") == "Evicted"
    if taken_away and (code == ExitCode.INTERRUPTED or message is None):
        return _failure_of_pod(pod)
    if isinstance(message, TrainingFailure):
        return message
    if code == 137:
        return TrainingFailure(
            failure_code=FailureCode.OUT_OF_MEMORY,
            failure_reason="The trainer was killed (exit code 137), most often because memory ran out; "
            "raise the memory limit of the training Job and look at the node's log.",
        )
    if code == 128 or reason in ("StartError", "ContainerCannotRun"):
        return TrainingFailure(
            failure_code=FailureCode.TRAINING_ERROR,
            failure_reason="The trainer's container could not be started "
            f"({short(ended.get('message') or reason)}); check TRAINER_IMAGE.",
        )
    unknown = FailureCode.TRAINING_ERROR, f"The trainer ended with exit code {code}"
    failure_code, sentence = _BY_EXIT_CODE.get(code or 0, unknown)
    return TrainingFailure(
        failure_code=failure_code,
        failure_reason=f"{sentence}; it left no reason that can be read, so look at its log.",
    )


def _failure_of_pod(pod: Manifest) -> TrainingFailure:
    status = pod.get("status", {})
    why = (disruption(pod) or {}).get("message") or status.get("message") or status.get("reason")
    why = short(why or "no reason was given")
    if (status.get("reason") or "").startswith(_NO_DEVICE_REASONS):
        return TrainingFailure(
            failure_code=FailureCode.GPU_UNAVAILABLE,
            failure_reason=f"The node could not give the training its GPU ({why}); "
            "look at the node's device plugin, then send the request again.",
        )
    return TrainingFailure(
        failure_code=FailureCode.EVICTED,
        failure_reason=f"The node took the training's pod away ({why}); "
        "send the request again: it goes on from its last checkpoint.",
    )
