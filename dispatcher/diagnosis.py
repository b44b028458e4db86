"""What a Job's state means: Job and Pod dicts in, a frozen Diagnosis out. No clock, no I/O.

Conditions are read by type and never by place (since Kubernetes 1.31 FailureTarget and
SuccessCriteriaMet come first), and never from counters: `failed: 1` with a retry on its way is no
failure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from dispatcher.job import request_of, style_of
from job_contract import names
from job_contract.outcome import ExitCode, FailureCode, TrainingFailure, TrainingResult, decode
from job_contract.request import DEFAULT_EPOCHS

VERDICT_ANNOTATION: Final = "lora-trainer.io/verdict"
"""Why the dispatcher itself gave a Job up, as JSON of a TrainingFailure. It is written before anything
follows from it, so that what was once told stays true."""

_PULL_REASONS: Final = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG_REASONS: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_NO_DEVICE_REASONS: Final = ("UnexpectedAdmissionError", "OutOf")
"""A kubelet that has no healthy GPU, or none left, for a pod that the scheduler sent it."""
_VOLUME_HINTS: Final = ("persistentvolumeclaim", "unbound immediate", "volume")


class Phase(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Stuck:
    """A pod that cannot start; after a grace period its Job fails with this."""

    since: datetime
    failure: TrainingFailure


@dataclass(frozen=True)
class Diagnosis:
    phase: Phase
    started: bool
    """The container has really run at some time, whatever became of it."""
    result: TrainingResult | None = None
    failure: TrainingFailure | None = None
    stuck: Stuck | None = None
    running_pod: str | None = None
    """A container that runs, even where the Job is over: it may still be saving."""

    @property
    def terminal(self) -> bool:
        return self.phase in (Phase.COMPLETED, Phase.FAILED)

    def failed_with(self, failure: TrainingFailure) -> "Diagnosis":
        """Return what holds instead when a completed training turns out to have left no file."""
        return replace(self, phase=Phase.FAILED, result=None, failure=failure)


def diagnose(job: dict[str, Any], pods: Sequence[dict[str, Any]]) -> Diagnosis:
    """Say what has become of a Job.

    Args:
        job: the Job as the API has it.
        pods: the pods of that Job, in any order.
    """
    pods = sorted(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"])
    )
    started = any(_has_started(pod) for pod in pods)
    running = next((pod["metadata"]["name"] for pod in reversed(pods) if _is_running(pod)), None)
    if _condition(job, "Complete"):
        return replace(_completed(job, pods, started), running_pod=running)
    if _condition(job, "Failed"):
        return Diagnosis(Phase.FAILED, started, failure=_failure_of_job(job, pods), running_pod=running)
    if job["metadata"].get("deletionTimestamp"):
        return replace(_deleted(job, pods, started), running_pod=running)
    if running:
        return Diagnosis(Phase.RUNNING, started, running_pod=running)
    return Diagnosis(Phase.WAITING, started, stuck=_stuck(pods))


def _completed(job: dict[str, Any], pods: Sequence[dict[str, Any]], started: bool) -> Diagnosis:
    """Exit 0 is not enough: without the trainer's own word on the file, nothing is completed.

    Only where no pod is left to ask (a TTL ran out while no dispatcher ran) the Job's word has to do.
    """
    result = _result(pods) or (None if pods else _result_by_contract(job))
    if result:
        return Diagnosis(Phase.COMPLETED, started=True, result=result)
    failure = TrainingFailure(
        failure_code=FailureCode.STORAGE_ERROR,
        failure_reason="The trainer ended without an error, but reported no weights file; "
        "check that TRAINER_IMAGE is a lora-trainer image and look at its log.",
    )
    return Diagnosis(Phase.FAILED, started, failure=failure)


def _result_by_contract(job: dict[str, Any]) -> TrainingResult | None:
    """Return where the weights lie when the trainer has ended with exit code 0; the loss is not known."""
    request, style = request_of(job), style_of(job)
    if style is None:
        return None
    return TrainingResult(
        model_path=f"{names.MODELS_MOUNT_DIR}/{style}/{names.WEIGHTS_FILE_NAME}",
        epochs=request.num_epochs if request else DEFAULT_EPOCHS,
        seconds=0.0,
    )


def _deleted(job: dict[str, Any], pods: Sequence[dict[str, Any]], started: bool) -> Diagnosis:
    result, verdict = _result(pods), _verdict(job)
    if verdict:
        return Diagnosis(Phase.FAILED, started, failure=verdict)
    if result:
        return Diagnosis(Phase.COMPLETED, started=True, result=result)
    failure = TrainingFailure(
        failure_code=FailureCode.JOB_DELETED,
        failure_reason="The training was cancelled: its Job was deleted. "
        "Send a new request, or run the Job again, to train this style.",
    )
    return Diagnosis(Phase.FAILED, started, failure=failure)


def _result(pods: Sequence[dict[str, Any]]) -> TrainingResult | None:
    for pod in reversed(pods):
        ended = _terminated(pod)
        if ended and ended.get("exitCode") == 0:
            message = decode(ended.get("message"))
            if isinstance(message, TrainingResult):
                return message
    return None


def _failure_of_job(job: dict[str, Any], pods: Sequence[dict[str, Any]]) -> TrainingFailure:
    condition = _condition(job, "Failed") or {}
    verdict = _verdict(job)
    if verdict:
        return verdict
    last = _last_failure(pods)
    if condition.get("reason") == "DeadlineExceeded":
        limit = job.get("spec", {}).get("activeDeadlineSeconds")
        within = f" within its {limit} seconds" if limit else ""
        return TrainingFailure(
            failure_code=FailureCode.DEADLINE_EXCEEDED,
            failure_reason=f"The training did not finish{within}; use fewer epochs or images, "
            "or raise the deadline (JOB_DEADLINE_SECONDS).",
        )
    if last:
        return last
    detail = condition.get("message") or condition.get("reason") or "no reason was given"
    return TrainingFailure(
        failure_code=FailureCode.TRAINING_ERROR,
        failure_reason=f"The Job failed and none of its pods is left to say why ({detail}); "
        "send the request again, and look at the trainer's log while it runs.",
    )


def _verdict(job: dict[str, Any]) -> TrainingFailure | None:
    text = (job["metadata"].get("annotations") or {}).get(VERDICT_ANNOTATION)
    try:
        return TrainingFailure.model_validate_json(text) if text else None
    except ValidationError:
        return None


def _last_failure(pods: Sequence[dict[str, Any]]) -> TrainingFailure | None:
    for pod in reversed(pods):
        ended = _terminated(pod)
        if ended and ended.get("exitCode") != 0:
            return _failure_of_container(pod, ended)
        if pod.get("status", {}).get("phase") == "Failed":
            return _failure_of_pod(pod)
    return None


def _failure_of_container(pod: dict[str, Any], ended: dict[str, Any]) -> TrainingFailure:
    message = decode(ended.get("message"))
    code, reason = ended.get("exitCode"), ended.get("reason")
    if reason == "OOMKilled":
        return TrainingFailure(
            failure_code=FailureCode.OUT_OF_MEMORY,
            failure_reason="The trainer used more memory than its container may; "
            "raise the memory limit of the training Job, or use a smaller batch_size.",
        )
    taken_away = _disrupted(pod) or pod["status"].get("reason") == "Evicted"
    if taken_away and (code == ExitCode.INTERRUPTED or message is None):
        return _failure_of_pod(pod)
    if isinstance(message, TrainingFailure):
        return message
    if code == 137:
        return TrainingFailure(
            failure_code=FailureCode.OUT_OF_MEMORY,
            failure_reason="The trainer was killed (exit code 137), most often for want of memory; "
            "raise the memory limit of the training Job and look at the node's log.",
        )
    if code == 128 or reason in ("StartError", "ContainerCannotRun"):
        return TrainingFailure(
            failure_code=FailureCode.TRAINING_ERROR,
            failure_reason="The trainer's container could not be started "
            f"({_short(ended.get('message') or reason)}); check TRAINER_IMAGE.",
        )
    return TrainingFailure(
        failure_code=FailureCode.TRAINING_ERROR,
        failure_reason=f"The trainer ended with exit code {code} and left no reason; look at its log.",
    )


def _failure_of_pod(pod: dict[str, Any]) -> TrainingFailure:
    status = pod.get("status", {})
    disruption = _disrupted(pod) or {}
    why = disruption.get("message") or status.get("message") or status.get("reason") or "no reason was given"
    if (status.get("reason") or "").startswith(_NO_DEVICE_REASONS):
        return TrainingFailure(
            failure_code=FailureCode.GPU_UNAVAILABLE,
            failure_reason=f"The node could not give the training its GPU ({_short(why)}); "
            "look at the node's device plugin, then send the request again.",
        )
    return TrainingFailure(
        failure_code=FailureCode.EVICTED,
        failure_reason=f"The node took the training's pod away ({_short(why)}); "
        "send the request again: it goes on from its last checkpoint.",
    )


def _stuck(pods: Sequence[dict[str, Any]]) -> Stuck | None:
    if not pods:
        return None
    pod = pods[-1]
    waiting = _container(pod).get("state", {}).get("waiting") or {}
    reason, message = waiting.get("reason"), waiting.get("message") or ""
    # Once it has a node: before that, an autoscaler may have taken its time.
    since = _time(pod.get("status", {}).get("startTime") or pod["metadata"].get("creationTimestamp"))
    if reason in _PULL_REASONS:
        image = _container(pod).get("image") or "the trainer's image"
        return _stuck_with(
            since,
            FailureCode.IMAGE_PULL,
            f"The image {image} cannot be pulled ({_short(message or reason)}); "
            "check TRAINER_IMAGE and the cluster's pull secret.",
        )
    if reason in _CONFIG_REASONS:
        return _stuck_with(
            since,
            FailureCode.UNSCHEDULABLE,
            f"The trainer's container cannot be made ({_short(message or reason)}); create what is missing.",
        )
    scheduled = _condition(pod, "PodScheduled", status="False")
    if scheduled and scheduled.get("reason") == "Unschedulable":
        detail = scheduled.get("message") or ""
        advice = "create the volume claim, or name another"
        if not any(hint in detail.lower() for hint in _VOLUME_HINTS):
            advice = "add a node with a free GPU, or check the Job's node selector and tolerations"
        return _stuck_with(
            _time(scheduled.get("lastTransitionTime")) or since,
            FailureCode.UNSCHEDULABLE,
            f"No node can take the training ({_short(detail)}); {advice}.",
        )
    return None


def _stuck_with(since: datetime | None, code: FailureCode, reason: str) -> Stuck | None:
    return Stuck(since, TrainingFailure(failure_code=code, failure_reason=reason)) if since else None


def _conditions(thing: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return thing.get("status", {}).get("conditions") or ()


def _condition(thing: dict[str, Any], kind: str, status: str = "True") -> dict[str, Any] | None:
    return next((c for c in _conditions(thing) if c.get("type") == kind and c.get("status") == status), None)


def _disrupted(pod: dict[str, Any]) -> dict[str, Any] | None:
    return _condition(pod, "DisruptionTarget")


def _container(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((status for status in statuses if status.get("name") == names.CONTAINER_NAME), {})


def _terminated(pod: dict[str, Any]) -> dict[str, Any] | None:
    ended: dict[str, Any] | None = _container(pod).get("state", {}).get("terminated")
    return ended


def has_ended(pod: dict[str, Any]) -> bool:
    """Whether a pod's container has ended, and so has left its last words."""
    return _terminated(pod) is not None


def _is_running(pod: dict[str, Any]) -> bool:
    return bool(_container(pod).get("state", {}).get("running"))


def _has_started(pod: dict[str, Any]) -> bool:
    """A container that could not be started is `terminated` too, at 1970 or with reason StartError."""
    ended = _terminated(pod)
    if ended:
        return ended.get("reason") not in ("StartError", "ContainerCannotRun", "ContainerStatusUnknown")
    return _is_running(pod)


def _short(text: object, limit: int = 300) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
