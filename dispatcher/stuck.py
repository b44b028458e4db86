"""Why a training does not start: from the status of its pod, and where that says nothing, from Events. Pure.

No Events are watched. Where a status does not say why, or not since when, the object to ask about is
named; whoever has the Events then asks again with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from dispatcher.job import Manifest
from dispatcher.obstacles import find_obstacle, is_of_pull, is_of_trainer, newest
from dispatcher.pod_status import (
    condition,
    container,
    is_over,
    short,
    terminated,
    time_of,
    waiting,
)
from job_contract.outcome import FailureCode, TrainingFailure

_DECIDED: Final = ("FailureTarget", "SuccessCriteriaMet")
_PULL_RETRIED: Final = {"ImagePullBackOff", "ErrImagePull"}
_PULL_REASONS: Final = {*_PULL_RETRIED, "InvalidImageName", "ErrImageNeverPull"}
_CONFIG_REASONS: Final = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_VOLUME_HINTS: Final = ("persistentvolumeclaim", "unbound immediate", "volume")
_ROOM_HINTS: Final = (
    "insufficient ",
    "too many pods",
    "readwriteoncepod",
    "multi-attach error",
    "exceeded quota",
)
"""In what the scheduler, the volumes' controller and the API server say when others have it all."""

_MOUNT_REASONS: Final = {"FailedMount", "FailedAttachVolume", "FailedMapVolume"}
_SANDBOX_REASONS: Final = {"FailedCreatePodSandBox"}
_POD_GOES_ON: Final = {"Pulling", "Pulled", "Created", "Started"}
_PULL_FAILS: Final = {"Failed", "BackOff"}
_JOB_REASONS: Final = {"FailedCreate"}
_JOB_GOES_ON: Final = {"SuccessfulCreate"}
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
    for_room: bool = False
    """What it lacks, other trainings may have: its grace counts only while none does, its deadline never."""
    about: str | None = None
    """The uid of the pod whose Events are to be asked since when; None where that is known."""
    trying_since: datetime | None = None
    """When the kubelet began a try that has not failed yet, as far as is known."""


@dataclass(frozen=True)
class Unexplained:
    """A training that does not start though no status says why; the Events about one object may."""

    since: datetime
    about: str
    """The uid of the pod, or of the Job where it has no pod."""


def what_holds(
    job: Manifest, pods: Sequence[Manifest], events: Sequence[Manifest]
) -> Stuck | Unexplained | None:
    """Say what keeps a Job that is neither over nor running from running; None for nothing that is known.

    Args:
        pods: in the order in which they were made.
        events: those about the object that an Unexplained named, in any order; none at first.
    """
    if job.get("spec", {}).get("suspend") or any(condition(job, kind) for kind in _DECIDED):
        return None
    if condition(job, "Suspended"):
        return None  # resumed, and not yet seen by the Job controller, which then sets startTime anew
    if not pods or is_over(pods[-1]):
        return _without_pod(job, pods, events)
    return _by_status(pods[-1], events) or _creating(pods[-1], events)


def _by_status(pod: Manifest, events: Sequence[Manifest]) -> Stuck | None:
    reason, message = waiting(pod).get("reason"), waiting(pod).get("message") or ""
    # Once it has a node: before that, an autoscaler may have taken its time.
    since = time_of(pod.get("status", {}).get("startTime") or pod["metadata"].get("creationTimestamp"))
    if reason in _PULL_REASONS:
        image = container(pod).get("image") or "the trainer's image"
        stuck = _stuck_with(
            since,
            FailureCode.IMAGE_PULL,
            f"The image {image} cannot be pulled ({short(message or reason)}); "
            "check TRAINER_IMAGE and the cluster's pull secret.",
        )
        return _pulling(stuck, pod, events) if stuck and reason in _PULL_RETRIED else stuck
    if reason in _CONFIG_REASONS:
        stuck = _stuck_with(
            since,
            FailureCode.UNSCHEDULABLE,
            f"The trainer's container cannot be made ({short(message or reason)}); create what is missing.",
        )
        return _configuring(stuck, pod, events) if stuck else None
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
            for_room=_is_room(detail),
        )
    return None


def _pulling(stuck: Stuck, pod: Manifest, events: Sequence[Manifest]) -> Stuck:
    """An image that the kubelet tries to pull again and again: it may have come far before it first failed.

    While a new try goes on, the status still shows how the last one failed.
    """
    about = pod["metadata"].get("uid")
    if not about:
        return stuck
    ours = [event for event in events if is_of_trainer(event)]
    obstacle = find_obstacle(ours, about, _PULL_FAILS, {"Pulled"})
    if obstacle is None:
        return replace(stuck, about=about)
    tried = newest(ours, about, {"Pulling"})
    return replace(
        stuck,
        since=max(stuck.since, obstacle.since),
        trying_since=tried if tried > obstacle.last_seen else None,
    )


def _configuring(stuck: Stuck, pod: Manifest, events: Sequence[Manifest]) -> Stuck:
    """A container that cannot be made, perhaps after a long pull. Each try tells of the image anew."""
    about = pod["metadata"].get("uid")
    if not about:
        return stuck
    ours = [event for event in events if is_of_trainer(event) and not is_of_pull(event)]
    obstacle = find_obstacle(ours, about, {"Failed"}, set())
    if obstacle is None:
        return replace(stuck, about=about)
    return replace(stuck, since=max(stuck.since, obstacle.since))


def _creating(pod: Manifest, events: Sequence[Manifest]) -> Stuck | Unexplained | None:
    """A pod that has its node and whose container is being created: volumes, network, image."""
    since, about = time_of(pod.get("status", {}).get("startTime")), pod["metadata"].get("uid")
    if since is None or not about or waiting(pod).get("reason") not in (None, "ContainerCreating"):
        return None
    obstacle = find_obstacle(events, about, _MOUNT_REASONS | _SANDBOX_REASONS, _POD_GOES_ON)
    if obstacle is None:
        return Unexplained(since, about)
    message = short(obstacle.message)
    if obstacle.reason in _SANDBOX_REASONS:
        text = f"The node cannot set up the pod ({message}); look at its network and container runtime."
    else:
        text = f"A volume of the training cannot be mounted ({message}); create what is missing, or free it."
    return _stuck_with(
        max(since, obstacle.since), FailureCode.UNSCHEDULABLE, text, for_room=_is_room(obstacle.message)
    )


def _without_pod(
    job: Manifest, pods: Sequence[Manifest], events: Sequence[Manifest]
) -> Stuck | Unexplained | None:
    """A Job that should have a pod by now: its first, or the one that tries again."""
    started = job.get("status", {}).get("startTime") or job["metadata"].get("creationTimestamp")
    # The later of both: a Job that was suspended meanwhile has a new start.
    times = [at for at in map(time_of, (started, _ended_at(pods[-1]) if pods else None)) if at]
    about = job["metadata"].get("uid")
    if not times or not about:
        return None
    since = max(times)
    obstacle = find_obstacle(events, about, _JOB_REASONS, _JOB_GOES_ON)
    if obstacle is None:
        return Unexplained(since, about)
    message = obstacle.message.removeprefix("Error creating: ")
    advice = next(
        (advice for hint, advice in _NO_POD_ADVICE if hint in message.lower()),
        "allow it, or change the Job template",
    )
    text = f"The cluster does not let the training have a pod ({short(message)}); {advice}."
    return _stuck_with(
        max(since, obstacle.since), FailureCode.UNSCHEDULABLE, text, for_room=_is_room(message)
    )


def _ended_at(pod: Manifest) -> str | None:
    ended: str | None = (terminated(pod) or {}).get("finishedAt")
    return ended or pod.get("status", {}).get("startTime")


def _is_room(message: str) -> bool:
    return any(hint in message.lower() for hint in _ROOM_HINTS)


def _stuck_with(
    since: datetime | None, code: FailureCode, reason: str, *, for_room: bool = False
) -> Stuck | None:
    failure = TrainingFailure(failure_code=code, failure_reason=reason)
    return Stuck(since, failure, for_room) if since else None
