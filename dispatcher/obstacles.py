"""What the Events about one object say: what fails, and since when nothing else has happened. Pure.

Only what is newest counts: a mount that failed at first and a pull that goes on now is no failure.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from dispatcher.job import Manifest
from dispatcher.pod_status import time_of
from job_contract import names

_PULL_WORDS: Final = ("Failed to pull image", "ErrImagePull", "ImagePullBackOff", "Back-off pulling image")
"""In the messages of reason Failed that are about the image and not about the container."""
_SAYS_LITTLE: Final = "timed out waiting for the condition"
"""Kubelet repeats a failed mount in these words, without the name of what is missing."""
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Obstacle:
    """What Events say that fails, and since when nothing but that has happened."""

    since: datetime
    last_seen: datetime
    reason: str
    message: str


def find_obstacle(
    events: Iterable[Manifest], about: str, failing: set[str], going_on: set[str]
) -> Obstacle | None:
    """Return what fails for one object, unless something went on since."""
    events = tuple(events)
    went_on = newest(events, about, going_on)
    left = [event for event in _with_reason(events, about, failing) if _last_seen(event) > went_on]
    if not left:
        return None
    began = max(went_on, min(map(_first_seen, left)))
    _, _, reason, message = max(map(_telling, left))
    return Obstacle(began, max(map(_last_seen, left)), reason, message or reason)


def _with_reason(events: Iterable[Manifest], about: str, reasons: set[str]) -> list[Manifest]:
    return [
        event
        for event in events
        if event.get("reason") in reasons and (event.get("involvedObject") or {}).get("uid") == about
    ]


def newest(events: Iterable[Manifest], about: str, reasons: set[str]) -> datetime:
    return max(map(_last_seen, _with_reason(events, about, reasons)), default=_NEVER)


def is_of_trainer(event: Manifest) -> bool:
    """Not of another container of the pod, `spec.containers{sidecar}`."""
    path = (event.get("involvedObject") or {}).get("fieldPath")
    return not path or f"{{{names.CONTAINER_NAME}}}" in path


def is_of_pull(event: Manifest) -> bool:
    message = event.get("message") or ""
    return any(words in message for words in _PULL_WORDS)


def _telling(event: Manifest) -> tuple[bool, datetime, str, str]:
    """The greatest is told: one that names what is missing, and of those the newest."""
    message = event.get("message") or ""
    return (_SAYS_LITTLE not in message, _last_seen(event), event["reason"], message)


def _last_seen(event: Manifest) -> datetime:
    """Which of an Event's fields says so depends on who wrote it."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return max((at for at in map(time_of, times) if at), default=_NEVER)


def _first_seen(event: Manifest) -> datetime:
    return time_of(event.get("firstTimestamp") or event.get("eventTime")) or _last_seen(event)
