"""What the Job controller of Kubernetes would do next, for one machine. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.job import Manifest
from dispatcher.pod_status import terminated
from job_contract import names


@dataclass(frozen=True)
class StartPod:
    """Start a pod, not before `at`."""

    at: datetime


@dataclass(frozen=True)
class StopPods:
    """End the pods that run; what follows is decided when they have ended."""


@dataclass(frozen=True)
class Finish:
    """Add these conditions: the Job is over."""

    conditions: list[Manifest]


@dataclass(frozen=True)
class Remove:
    """Forget a Job that nobody holds any more."""


@dataclass(frozen=True)
class Nothing:
    """Nothing to do until the Job or a pod changes, or until `at`."""

    at: datetime | None = None


Action = StartPod | StopPods | Finish | Remove | Nothing


def next_action(job: Manifest, pods: Sequence[Manifest], now: datetime, first_backoff: timedelta) -> Action:
    """Return what is to be done for a Job.

    The rules are those of batch/v1: podFailurePolicy, backoffLimit, a back-off of 10 s x 2^n up to 6
    minutes, activeDeadlineSeconds, suspend, ttlSecondsAfterFinished. The one difference: the deadline
    counts the time in which pods ran and not from the Job's start, since here Jobs queue for the GPU and
    a dispatcher may be off overnight.
    """
    running = [pod for pod in pods if terminated(pod) is None]
    finished_at = _finished_at(job)
    if finished_at:
        return _after_finish(job, finished_at, now)
    if job["metadata"].get("deletionTimestamp"):
        if running:
            return StopPods()
        return Remove() if not job["metadata"].get("finalizers") else Nothing()
    deadline = _deadline(job, pods, now)
    late = deadline is not None and now >= deadline
    if running:
        return StopPods() if late or job["spec"].get("suspend") else Nothing(deadline)
    return _between_pods(job, pods, now, first_backoff, late=late)


def _between_pods(
    job: Manifest, pods: Sequence[Manifest], now: datetime, first_backoff: timedelta, *, late: bool
) -> Action:
    """What the pods came to counts first: one that succeeded, even in its last second, has trained."""
    failures: list[Manifest] = []
    for pod in pods:
        ended = terminated(pod) or {}
        if ended.get("exitCode") == 0:
            return Finish(
                _conditions("SuccessCriteriaMet", "Complete", "CompletionsReached", "Reached expected", now)
            )
        action = _policy_action(job, pod, ended)
        if action == "FailJob":
            message = (
                f"Container {names.CONTAINER_NAME} for pod {pod['metadata']['name']} failed with exit code "
            )
            return Finish(_failed("PodFailurePolicy", f"{message}{ended.get('exitCode')}", now))
        if action == "Count":
            failures.append(pod)
    if late:
        return Finish(_failed("DeadlineExceeded", "Job was active longer than specified deadline", now))
    if len(failures) > job["spec"].get("backoffLimit", 6):
        return Finish(_failed("BackoffLimitExceeded", "Job has reached the specified backoff limit", now))
    if job["spec"].get("suspend"):
        return Nothing()
    return StartPod(_not_before(pods, len(failures), now, first_backoff))


def _policy_action(job: Manifest, pod: Manifest, ended: Manifest) -> str:
    """Return FailJob, Ignore or Count: the first rule of podFailurePolicy that matches decides."""
    for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
        codes = rule.get("onExitCodes")
        if codes and (ended.get("exitCode") in codes["values"]) == (codes["operator"] == "In"):
            return str(rule["action"])
        present = {(c["type"], c["status"]) for c in pod["status"].get("conditions") or ()}
        if any((c["type"], c.get("status", "True")) in present for c in rule.get("onPodConditions") or ()):
            return str(rule["action"])
    return "Count"


def _not_before(pods: Sequence[Manifest], failures: int, now: datetime, first_backoff: timedelta) -> datetime:
    """The back-off after the last pod; disruptions do not lengthen it, but never follow at once."""
    if not pods:
        return now
    last = max(_finished(pod, now) for pod in pods)
    return last + min(first_backoff * 2.0 ** (max(failures, 1) - 1), timedelta(minutes=6))


def _deadline(job: Manifest, pods: Sequence[Manifest], now: datetime) -> datetime | None:
    """When the pods will have run for as long as they may, should one run from now on."""
    seconds = job["spec"].get("activeDeadlineSeconds")
    if not pods or not seconds:
        return None
    ran = sum((_finished(pod, now) - _time(pod["status"]["startTime"]) for pod in pods), timedelta())
    return now + timedelta(seconds=seconds) - ran


def _finished(pod: Manifest, now: datetime) -> datetime:
    ended = terminated(pod)
    return _time(ended["finishedAt"]) if ended else now


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _finished_at(job: Manifest) -> datetime | None:
    for condition in job["status"].get("conditions") or ():
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return _time(condition["lastTransitionTime"])
    return None


def _after_finish(job: Manifest, finished_at: datetime, now: datetime) -> Action:
    seconds = job["spec"].get("ttlSecondsAfterFinished")
    if seconds is None:
        return Nothing()
    expiry = finished_at + timedelta(seconds=seconds)
    if now < expiry:
        return Nothing(expiry)
    return Remove() if not job["metadata"].get("finalizers") else Nothing()


def _failed(reason: str, message: str, now: datetime) -> list[Manifest]:
    return _conditions("FailureTarget", "Failed", reason, message, now)


def _conditions(first: str, last: str, reason: str, message: str, now: datetime) -> list[Manifest]:
    when = now.isoformat()
    return [
        {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": when}
        for kind in (first, last)
    ]
