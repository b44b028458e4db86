"""What the relay remembers of a Job between two looks at it."""

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from dispatcher.diagnosis import Diagnosis
from dispatcher.retry import backoff_seconds
from job_contract.progress import Progress

Patch = dict[str, Any]


@dataclass(frozen=True)
class RelayOptions:
    backend_url: str | None = None
    progress_seconds: float = 30.0
    grace: timedelta = timedelta(minutes=10)
    give_up_after: timedelta = timedelta(days=7)
    first_retry_seconds: float = 1.0
    most_retry_seconds: float = 300.0


@dataclass
class Lane:
    """What this process remembers of a Job; losing it costs a repetition at the most, never a status."""

    uid: str
    annotations: dict[str, str] = field(default_factory=dict)
    """Written to the Job by us, and perhaps not yet in the snapshot."""
    unwritten: bool = False
    """Writing them has failed; nothing more is told before it has worked."""
    phase: str = ""
    due_since: float | None = None
    attempts: int = 0
    first_failure: float | None = None
    retry_at: float = 0.0
    """When the backend may be told again, in seconds of the monotonic clock."""
    progress: Progress | None = None
    progress_due: float = 0.0
    ended: dict[str, Patch] = field(default_factory=dict)
    """The pods that were seen to have ended; with a short TTL their last words outlast them here only."""
    final: Diagnosis | None = None
    """How the Job ended, once that was made sure of."""

    def overlay(self, job: Patch) -> Patch:
        """Return the Job with what we wrote to it, until the snapshot has caught up."""
        metadata = job["metadata"]
        shown = metadata.get("annotations") or {}
        self.annotations = {key: text for key, text in self.annotations.items() if shown.get(key) != text}
        return {**job, "metadata": {**metadata, "annotations": {**shown, **self.annotations}}}

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
