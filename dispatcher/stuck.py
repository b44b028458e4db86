"""Why a training does not start: from the status of its pod, and where that says nothing, from Events. Pure.

No Events are watched. A status that says nothing names the object to ask about; whoever has the Events
then asks again with them. Only what is newest counts: a mount that failed at first and a pull that goes
on now is no failure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dispatcher.pod_status import (
    Thing,
    condition,
    container,
    has_ended,
    short,
    terminated,
    time_of,
    waiting,
)
from job_contract.outcome import FailureCode, TrainingFailure

_DECIDED: Final = ("FailureTarget", "SuccessCriteriaMet")
_PULL_REASONS: Final = {"ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"}
_CONFIG_REASONS: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_VOLUME_HINTS: Final = ("persistentvolumeclaim", "unbound immediate", "volume")

_MOUNT_REASONS: Final = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}
_SANDBOX_REASONS: Final = {"FailedCreatePodSandBox"}
_POD_GOES_ON: Final = {"Pulling", "Pulled", "Created", "Started"}
_JOB_REASONS: Final = {"FailedCreate"}
_JOB_GOES_ON: Final = {"SuccessfulCreate"}
_SAYS_LITTLE: Final = "timed out waiting for the condition"
"""Kubelet repeats a failed mount in these words, without the name of what is missing."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_NO_POD_ADVICE: Final = (
    ("exceeded quota", "raise the ResourceQuota, or let other pods end, then send the request again"),
    ("violates podsecurity", "allow it on the namespace, or change the Job template's security context"),
    ("serviceaccount", "create the service account, or name another in the Job template"),
    ("priorityclass", "create the PriorityClass, or name another"),
    ("usage per", "change the resources in the Job template, or the LimitRange"),
    ("webhook", "look at that admission webhook"),
)


@dataclass(frozen=True)
class Stuck:
    """A training that cannot start; after a grace period its Job fails with this."""

    since: datetime
    failure: TrainingFailure


@dataclass(frozen=True)
class Unexplained:
    """A training that does not start though no status says why; the Events about one object may."""

    since: datetime
    about: str
    """The uid of the pod, or of the Job where it has no pod."""


def what_holds(job: Thing, pods: Sequence[Thing], events: Sequence[Thing]) -> Stuck | Unexplained | None:
    """Say what keeps a Job that is neither over nor running from running; None for nothing that is known.

    Args:
        pods: in the order in which they were made.
        events: those about the object that an Unexplained named, in any order; none at first.
    """
    if job.get("spec", {}).get("suspend") or any(condition(job, kind) for kind in _DECIDED):
        return None
    if not pods or _is_over(pods[-1]):
        return _without_pod(job, pods, events)
    return _by_status(pods[-1]) or _creating(pods[-1], events)


def _by_status(pod: Thing) -> Stuck | None:
    reason, message = waiting(pod).get("reason"), waiting(pod).get("message") or ""
    # Once it has a node: before that, an autoscaler may have taken its time.
    since = time_of(pod.get("status", {}).get("startTime") or pod["metadata"].get("creationTimestamp"))
    if reason in _PULL_REASONS:
        image = container(pod).get("image") or "the trainer's image"
        return _stuck_with(
            since,
            FailureCode.IMAGE_PULL,
            f"The image {image} cannot be pulled ({short(message or reason)}); "
            "check TRAINER_IMAGE and the cluster's pull secret.",
        )
    if reason in _CONFIG_REASONS:
        return _stuck_with(
            since,
            FailureCode.UNSCHEDULABLE,
            f"The trainer's container cannot be made ({short(message or reason)}); create what is missing.",
        )
    scheduled = condition(pod, "PodScheduled", status="False")
    if scheduled and scheduled.get("reason") == "Unschedulable":
        detail = scheduled.get("message") or ""
        advice = "create the volume claim, or name another"
        if not any(hint in detail.lower() for hint in _VOLUME_HINTS):
            advice = "add a node with a free GPU, or check the Job's node selector and tolerations"
        return _stuck_with(
            time_of(scheduled.get("lastTransitionTime")) or since,
            FailureCode.UNSCHEDULABLE,
            f"No node can take the training ({short(detail)}); {advice}.",
        )
    return None


def _creating(pod: Thing, events: Sequence[Thing]) -> Stuck | Unexplained | None:
    """A pod that has its node and whose container is being created: volumes, network, image."""
    since, about = time_of(pod.get("status", {}).get("startTime")), pod["metadata"].get("uid")
    if since is None or not about or waiting(pod).get("reason") not in (None, "ContainerCreating"):
        return None
    obstacle = _obstacle(events, about, _MOUNT_REASONS | _SANDBOX_REASONS, _POD_GOES_ON)
    if obstacle is None:
        return Unexplained(since, about)
    message = short(obstacle.message)
    if obstacle.reason in _SANDBOX_REASONS:
        text = f"The node cannot set up the pod ({message}); look at its network and container runtime."
    else:
        text = f"A volume of the training cannot be mounted ({message}); create what is missing, or free it."
    return _stuck_with(max(since, obstacle.since), FailureCode.UNSCHEDULABLE, text)


def _without_pod(job: Thing, pods: Sequence[Thing], events: Sequence[Thing]) -> Stuck | Unexplained | None:
    """A Job that should have a pod by now: its first, or the one that tries again."""
    started = job.get("status", {}).get("startTime") or job["metadata"].get("creationTimestamp")
    since, about = time_of(_ended_at(pods[-1]) if pods else started), job["metadata"].get("uid")
    if since is None or not about:
        return None
    obstacle = _obstacle(events, about, _JOB_REASONS, _JOB_GOES_ON)
    if obstacle is None:
        return Unexplained(since, about)
    message = obstacle.message.removeprefix("Error creating: ")
    advice = next(
        (advice for hint, advice in _NO_POD_ADVICE if hint in message.lower()),
        "allow it, or change the Job template",
    )
    text = f"The cluster lets the training have no pod ({short(message)}); {advice}."
    return _stuck_with(max(since, obstacle.since), FailureCode.UNSCHEDULABLE, text)


def _is_over(pod: Thing) -> bool:
    """A pod that was evicted before its container was created has no container that has ended."""
    return has_ended(pod) or pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def _ended_at(pod: Thing) -> str | None:
    ended: str | None = (terminated(pod) or {}).get("finishedAt")
    return ended or pod.get("status", {}).get("startTime")


@dataclass(frozen=True)
class _Obstacle:
    """What Events say that fails, and since when nothing but that has happened."""

    since: datetime
    reason: str
    message: str


def _obstacle(events: Iterable[Thing], about: str, failing: set[str], going_on: set[str]) -> _Obstacle | None:
    """Return what fails for one object, unless something went on since."""
    ours = [event for event in events if (event.get("involvedObject") or {}).get("uid") == about]
    went_on = max((_last_seen(event) for event in ours if event.get("reason") in going_on), default=_NEVER)
    left = [event for event in ours if event.get("reason") in failing and _last_seen(event) > went_on]
    if not left:
        return None
    began = max(went_on, min(map(_first_seen, left)))
    _, _, reason, message = max(map(_worth, left))
    return _Obstacle(began, reason, message or reason)


def _worth(event: Thing) -> tuple[bool, datetime, str, str]:
    """The greatest is told: one that names what is missing, and of those the newest."""
    message = event.get("message") or ""
    return (_SAYS_LITTLE not in message, _last_seen(event), event["reason"], message)


def _last_seen(event: Thing) -> datetime:
    """Which of an Event's fields says so depends on who wrote it."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max((at for at in map(time_of, times) if at), default=_NEVER)


def _first_seen(event: Thing) -> datetime:
    return time_of(event.get("firstTimestamp") or event.get("eventTime")) or _last_seen(event)


def _stuck_with(since: datetime | None, code: FailureCode, reason: str) -> Stuck | None:
    return Stuck(since, TrainingFailure(failure_code=code, failure_reason=reason)) if since else None
