"""Live progress travels in the trainer's log: a line a person can read and the dispatcher parses."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

_LINE: Final = re.compile(
    r"epoch (?P<epoch>\d{1,6})/(?P<total>\d{1,6})\b.*\bETA (?:(?P<days>\d+) days?, )?"
    r"(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)"
)


@dataclass(frozen=True)
class Progress:
    """How far a training is; epochs count from 1, seconds are what remains."""

    current_epoch: int
    total_epochs: int
    estimated_seconds: int

    @property
    def percent(self) -> float:
        return round(100 * self.current_epoch / max(1, self.total_epochs), 1)


def format_progress(progress: Progress, details: str) -> str:
    """Return `epoch 10/200  <details>  ETA 0:01:20`; details may hold anything but a line break."""
    eta = timedelta(seconds=progress.estimated_seconds)
    return f"epoch {progress.current_epoch}/{progress.total_epochs}  {details}  ETA {eta}"


def parse_progress(log: str) -> Progress | None:
    """Return the last progress in some lines of log, or None when no line has one."""
    for line in reversed(log.splitlines()):
        match = _LINE.search(line)
        if match:
            days, hours, minutes, seconds = (
                int(match[name] or 0) for name in ("days", "hours", "minutes", "seconds")
            )
            remaining = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
            return Progress(int(match["epoch"]), int(match["total"]), int(remaining.total_seconds()))
    return None
