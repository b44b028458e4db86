"""What the relay remembers of a Job between two looks at it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from dispatcher.diagnosis import Diagnosis
from dispatcher.job import Manifest
from dispatcher.retry import backoff_seconds
from job_contract.progress import Progress


@dataclass(frozen=True)
class RelayOptions:
    tellers: int = 32
    """Workers that may wait for a backend at once."""
    backend_url: str | None = None
    progress_seconds: float = 30.0
    grace: timedelta = timedelta(minutes=10)
    give_up_after: timedelta = timedelta(days=7)
    first_retry_seconds: float = 1.0
    most_retry_seconds: float = 300.0


@dataclass
class JobMemory:
    """What this process remembers of a Job; losing it costs a repetition at the most, never a status."""

    uid: str
    annotations: dict[str, str] = field(default_factory=dict)
    """Written to the Job by us, and perhaps not yet in the snapshot."""
    unwritten: bool = False
    """Writing them has failed; nothing more is told before it has worked."""
    phase: str = ""
    due_since: float = 0.0
    """When a status fell due, by the monotonic clock; 0 while none is."""
    attempts: int = 0
    first_failure: float | None = None
    retry_at: float = 0.0
    """When the backend may be told again, in seconds of the monotonic clock."""
    progress: Progress | None = None
    progress_due: float = 0.0
    """When progress may be told, by the monotonic clock; 0 until the training was first seen to run."""
    ended: dict[str, Manifest] = field(default_factory=dict)
    """The pods that were seen to have ended; with a short TTL their last words outlast them here only."""
    final: Diagnosis | None = None
    """How the Job ended, once that was made sure of."""
    undated_since: datetime | None = None
    """When Events were first asked since when the training cannot start, and did not say."""

    def overlay(self, job: Manifest) -> Manifest:
        """Return the Job with what we wrote to it, until the snapshot has caught up."""
        metadata = job["metadata"]
        shown = metadata.get("annotations") or {}
        self.annotations = {key: text for key, text in self.annotations.items() if shown.get(key) != text}
        return {**job, "metadata": {**metadata, "annotations": {**shown, **self.annotations}}}

    def dated(self, diagnosis: Diagnosis, now: datetime) -> Diagnosis:
        """Return the diagnosis with a start of the grace period where Events name none: their first asking.

        A Role of an earlier release does not let them be read.
        """
        if diagnosis.stuck is None or diagnosis.stuck.about is None:
            self.undated_since = None
            return diagnosis
        self.undated_since = self.undated_since or now
        return replace(diagnosis, stuck=replace(diagnosis.stuck, since=self.undated_since, about=None))

    def choose_first_progress(self, seconds: float, jitter: Callable[[], float] = random.random) -> None:
        """Spread the first report a little: trainings that start together would report together.

        It comes no sooner than `seconds` from now, since the process before this one may just have reported.
        """
        if not self.progress_due:
            self.progress_due = time.monotonic() + seconds * (1 + jitter() / 3)

    def next_delay(self, options: RelayOptions, at_least: float | None = None) -> float:
        """Count a failed attempt; return the seconds until the next."""
        self.attempts += 1
        self.first_failure = self.first_failure or time.monotonic()
        return backoff_seconds(
            self.attempts,
            first=options.first_retry_seconds,
            most=options.most_retry_seconds,
            at_least=at_least,
        )

    def is_too_late(self, options: RelayOptions) -> bool:
        """Whether attempts have failed for so long that no more is made."""
        limit = options.give_up_after.total_seconds()
        return self.first_failure is not None and time.monotonic() - self.first_failure > limit
