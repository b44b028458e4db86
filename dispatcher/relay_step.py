"""What is due for a Job: what the API server says now against what its annotations say was told.

Pure. `next_step` is asked again after every step, after every change and after every restart, so no
status depends on a process having been alive at the right moment.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from dispatcher.deadline import spare_seconds
from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, Phase
from dispatcher.stuck import Stuck, Unexplained
from dispatcher.style_lanes import waits
from job_contract import names
from job_contract.outcome import FailureCode, TrainingFailure

PROCESSING_ANNOTATION: Final = "lora-trainer.io/relayed-processing"
TERMINAL_ANNOTATION: Final = "lora-trainer.io/relayed-terminal"
"""What was told and when: `completed 2026-11-24T08:00:00+00:00`. Remove it and it is told again."""
PARKED_ANNOTATION: Final = "lora-trainer.io/parked"
"""Why the backend refused a status for good, and which."""
LOOK_AGAIN_SECONDS: Final = 60.0
"""Until Events are read anew of what has not failed, or may have gone on."""


class Status(StrEnum):
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def stage(self) -> str:
        """What the id of its delivery is made of: a Job has one end, whichever it is."""
        return "processing" if self is Status.PROCESSING else "terminal"


@dataclass(frozen=True)
class Adopt:
    """Put the finalizer on a Job that somebody else created."""


@dataclass(frozen=True)
class Start:
    """Let a Job start that waited for its style."""


@dataclass(frozen=True)
class ReadEvents:
    """See whether the Events about an object say why the training does not start."""

    about: str


@dataclass(frozen=True)
class GiveUp:
    """Write down, before anything follows from it, why the training ends here."""

    failure: TrainingFailure


@dataclass(frozen=True)
class Extend:
    """Move the deadline of a training that waits for room: its own time has not begun."""

    deadline: int
    """Seconds from the Job's start."""


@dataclass(frozen=True)
class Tell:
    status: Status


@dataclass(frozen=True)
class TellProgress:
    pod: str


@dataclass(frozen=True)
class Release:
    """Remove the finalizer: all is told."""


@dataclass(frozen=True)
class Wait:
    """Nothing is due until the Job changes, or until `seconds` have passed."""

    seconds: float | None = None


Step = Adopt | Start | ReadEvents | GiveUp | Extend | Tell | TellProgress | Release | Wait


def next_step(
    job: dict[str, Any],
    diagnosis: Diagnosis,
    *,
    now: datetime,
    grace: timedelta,
    is_next_of_style: bool,
    room_free_since: datetime | None,
) -> Step:
    """Return the one step that is due.

    Args:
        grace: how long a training may be unable to start before its Job is given up.
        is_next_of_style: no unfinished Job of the same style came before this one.
        room_free_since: since when no training holds what others may lack; None while one does.
    """
    metadata = job["metadata"]
    annotations = metadata.get("annotations") or {}
    held = names.FINALIZER in (metadata.get("finalizers") or ())
    deleting = bool(metadata.get("deletionTimestamp"))
    told = TERMINAL_ANNOTATION in annotations

    if told:
        # What still runs still writes: the Job stays, and its style taken, until that has ended.
        return Release() if held and not diagnosis.running_pod else Wait()
    if deleting and not held:
        return Wait()  # it is going, and was never ours to hold
    if not held:
        return Adopt()
    cancelled = diagnosis.failure and diagnosis.failure.failure_code is FailureCode.JOB_DELETED
    if diagnosis.failure and cancelled and VERDICT_ANNOTATION not in annotations:
        return GiveUp(diagnosis.failure)
    if diagnosis.started and PROCESSING_ANNOTATION not in annotations:
        return Tell(Status.PROCESSING)
    if diagnosis.phase is Phase.COMPLETED:
        return Tell(Status.COMPLETED)
    if diagnosis.phase is Phase.FAILED:
        return Tell(Status.FAILED)
    if diagnosis.phase is Phase.RUNNING and diagnosis.running_pod:
        return TellProgress(diagnosis.running_pod)
    if waits(job) and is_next_of_style:
        return Start()
    held_up = diagnosis.stuck or diagnosis.unexplained
    if held_up is None or VERDICT_ANNOTATION in annotations:
        return Wait()
    return _when_held_up(held_up, job, diagnosis.ran, now=now, grace=grace, room_free_since=room_free_since)


def _when_held_up(
    held_up: Stuck | Unexplained,
    job: dict[str, Any],
    ran: timedelta,
    *,
    now: datetime,
    grace: timedelta,
    room_free_since: datetime | None,
) -> Step:
    since, for_room = held_up.since, isinstance(held_up, Stuck) and held_up.for_room
    if for_room:
        # Soon enough: whichever training ends before that, this one still has its grace from then on.
        since = now if room_free_since is None else max(since, room_free_since)
    remaining = (since + grace - now).total_seconds()
    if remaining > 0:
        return _wait_for_room(job, ran, remaining, now=now, grace=grace) if for_room else Wait(remaining)
    if held_up.about is not None:
        return ReadEvents(held_up.about)
    if held_up.trying_since and held_up.trying_since < since + grace:
        # The try that was under way when the grace ended may end well. The next one is too late: an image
        # that is never found is tried for ever, and not every failure leaves an Event.
        return Wait(LOOK_AGAIN_SECONDS)
    return GiveUp(held_up.failure)


def _wait_for_room(
    job: dict[str, Any], ran: timedelta, remaining: float, *, now: datetime, grace: timedelta
) -> Step:
    """Wait with all of the training's own time ahead of it; its deadline moves once a grace at the most."""
    spare = spare_seconds(job, ran, now)
    if spare is None:
        return Wait(remaining)
    if spare > 0:
        return Wait(min(remaining, spare))
    return Extend(math.ceil(job["spec"]["activeDeadlineSeconds"] - spare + grace.total_seconds()))
