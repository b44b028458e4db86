"""What the status of a Job or of a pod says: conditions and the trainer's container. Pure."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from dispatcher.job import Manifest
from job_contract import names


def condition(thing: Manifest, kind: str, status: str = "True") -> Manifest | None:
    """Return a condition by its type, wherever it stands; None when it has another status."""
    return next((c for c in _conditions(thing) if c.get("type") == kind and c.get("status") == status), None)


def _conditions(thing: Manifest) -> Iterable[Manifest]:
    return thing.get("status", {}).get("conditions") or ()


def disruption(pod: Manifest) -> Manifest | None:
    """Return the condition of a pod that was preempted, evicted or drained."""
    return condition(pod, "DisruptionTarget")


def container(pod: Manifest) -> Manifest:
    """Return the status of the trainer's container; empty before it has one."""
    statuses = pod.get("status", {}).get("containerStatuses") or ()
    return next((status for status in statuses if status.get("name") == names.CONTAINER_NAME), {})


def waiting(pod: Manifest) -> Manifest:
    """Return why the container does not run yet: `reason`, `message`; empty when it does not wait."""
    return container(pod).get("state", {}).get("waiting") or {}


def terminated(pod: Manifest) -> Manifest | None:
    ended: Manifest | None = container(pod).get("state", {}).get("terminated")
    return ended


def has_ended(pod: Manifest) -> bool:
    """Whether a pod's container has ended, and so has left its last words."""
    return terminated(pod) is not None


def is_over(pod: Manifest) -> bool:
    """A pod that was evicted before its container was created has no container that has ended."""
    return has_ended(pod) or _phase_is_last(pod)


def is_on_node(pod: Manifest) -> bool:
    """Whether a pod has its node, and with it a GPU, its volumes and its part of a quota."""
    return condition(pod, "PodScheduled") is not None and not _phase_is_last(pod)


def _phase_is_last(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def is_running(pod: Manifest) -> bool:
    return bool(container(pod).get("state", {}).get("running"))


def has_started(pod: Manifest) -> bool:
    """A container that could not be started is `terminated` too, at 1970 or with reason StartError."""
    ended = terminated(pod)
    if ended:
        return ended.get("reason") not in ("StartError", "ContainerCannotRun", "ContainerStatusUnknown")
    return is_running(pod)


def ran_for(pod: Manifest) -> timedelta:
    """Return for how long a container ran that has ended."""
    ended = terminated(pod)
    if not ended or not has_started(pod):
        return timedelta()
    began, finished = time_of(ended.get("startedAt")), time_of(ended.get("finishedAt"))
    return finished - began if began and finished else timedelta()


def short(text: object, limit: int = 300) -> str:
    """Return a text in one line, fit for the middle of a sentence."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def time_of(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
