"""What a Job's state means: Job, Pod and Event dicts in, a frozen Diagnosis out. No clock, no I/O.

Conditions are read by type and never by place (since Kubernetes 1.31 FailureTarget and
SuccessCriteriaMet come first), and never from counters: `failed: 1` with a retry on its way is no
failure. Why a Job failed is in failure_reasons.py, why it does not start in stuck.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError

from dispatcher.failure_reasons import failure_of_job
from dispatcher.job import request_of, style_of
from dispatcher.pod_status import condition, has_started, is_running, ran_for, terminated
from dispatcher.stuck import Stuck, Unexplained, what_holds
from job_contract import names
from job_contract.outcome import FailureCode, TrainingFailure, TrainingResult, decode
from job_contract.request import DEFAULT_EPOCHS

VERDICT_ANNOTATION: Final = "lora-trainer.io/verdict"
"""Why the dispatcher itself gave a Job up, as JSON of a TrainingFailure. It is written before anything
follows from it, so that what was once told stays true."""


class Phase(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True)
class Diagnosis:
    phase: Phase
    started: bool
    """The container has really run at some time, whatever became of it."""
    result: TrainingResult | None = None
    failure: TrainingFailure | None = None
    stuck: Stuck | None = None
    unexplained: Unexplained | None = None
    ran: timedelta = timedelta()
    """Of one that waits: how long its earlier attempts ran."""
    running_pod: str | None = None
    """A container that runs, even where the Job is over: it may still be saving."""

    @property
    def terminal(self) -> bool:
        return self.phase in (Phase.COMPLETED, Phase.FAILED)

    def failed_with(self, failure: TrainingFailure) -> "Diagnosis":
        """Return what holds instead when a completed training turns out to have left no file."""
        return replace(self, phase=Phase.FAILED, result=None, failure=failure)


def diagnose(
    job: dict[str, Any], pods: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]] = ()
) -> Diagnosis:
    """Say what has become of a Job.

    Args:
        job: the Job as the API has it.
        pods: the pods of that Job, in any order.
        events: the Events about what an earlier Diagnosis called unexplained, in any order.
    """
    pods = sorted(
        pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", pod["metadata"]["name"])
    )
    started = any(has_started(pod) for pod in pods)
    running = next((pod["metadata"]["name"] for pod in reversed(pods) if is_running(pod)), None)
    if condition(job, "Complete"):
        return replace(_completed(job, pods, started), running_pod=running)
    if condition(job, "Failed"):
        failure = _verdict(job) or failure_of_job(job, pods)
        return Diagnosis(Phase.FAILED, started, failure=failure, running_pod=running)
    if job["metadata"].get("deletionTimestamp"):
        return replace(_deleted(job, pods, started), running_pod=running)
    if running:
        return Diagnosis(Phase.RUNNING, started, running_pod=running)
    ran = sum(map(ran_for, pods), timedelta())
    match what_holds(job, pods, events):
        case Stuck() as stuck:
            return Diagnosis(Phase.WAITING, started, stuck=stuck, ran=ran)
        case unexplained:
            return Diagnosis(Phase.WAITING, started, unexplained=unexplained, ran=ran)


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
        ended = terminated(pod)
        if ended and ended.get("exitCode") == 0:
            message = decode(ended.get("message"))
            if isinstance(message, TrainingResult):
                return message
    return None


def _verdict(job: dict[str, Any]) -> TrainingFailure | None:
    text = (job["metadata"].get("annotations") or {}).get(VERDICT_ANNOTATION)
    try:
        return TrainingFailure.model_validate_json(text) if text else None
    except ValidationError:
        return None
