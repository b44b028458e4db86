"""A training's deadline: its own time does not begin while it waits for what other trainings hold. Pure.

Kubernetes counts activeDeadlineSeconds from a Job's start, the wait of its pod for a GPU included. So the
deadline of one that waits is moved ahead of it; this says when, and how.
"""

import re
from datetime import datetime, timedelta
from typing import Final

from dispatcher.job import Manifest
from dispatcher.pod_status import time_of

DEADLINE_ANNOTATION: Final = "lora-trainer.io/deadline-seconds"
"""A training's own seconds, or "none": its activeDeadlineSeconds before the dispatcher changed that."""
MOVED_ANNOTATION: Final = "lora-trainer.io/deadline-moved-to"
"""What the dispatcher changed activeDeadlineSeconds to."""

_SECONDS: Final = re.compile(r"[1-9][0-9]{0,9}")


def own_seconds(job: Manifest) -> int | None:
    """Return for how many seconds all attempts of a training together may run; None for any number.

    A deadline other than the dispatcher's was set by somebody since, and counts.
    """
    limit: int | None = job.get("spec", {}).get("activeDeadlineSeconds")
    annotations = job["metadata"].get("annotations") or {}
    noted = annotations.get(DEADLINE_ANNOTATION, "")
    is_moved = annotations.get(MOVED_ANNOTATION) == str(limit)
    return int(noted) if is_moved and _SECONDS.fullmatch(noted) else limit


def spare_seconds(job: Manifest, ran: timedelta, now: datetime) -> float | None:
    """Return how long a training can wait on with all its own time left; not above 0 when it has less.

    None where no deadline runs, or one that is over: what the Job controller is about to do stands.

    Args:
        ran: how long earlier attempts ran.
    """
    limit, own = job.get("spec", {}).get("activeDeadlineSeconds"), own_seconds(job)
    started = time_of(job.get("status", {}).get("startTime"))
    if limit is None or own is None or started is None:
        return None
    passed = (now - started).total_seconds()
    return limit - own - (passed - ran.total_seconds()) if passed < limit else None


def with_deadline(job: Manifest, seconds: int) -> Manifest:
    """Return the merge patch that ends a Job so many seconds after its start, and notes its own time.

    The Job controller ends a Job that is late at once, and its pods with it.
    """
    noted = {DEADLINE_ANNOTATION: str(own_seconds(job) or "none"), MOVED_ANNOTATION: str(seconds)}
    return {"metadata": {"annotations": noted}, "spec": {"activeDeadlineSeconds": seconds}}
