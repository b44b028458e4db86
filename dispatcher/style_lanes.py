"""Two requests for one style never train at once: they would write the same files.

A Job whose style is taken is created suspended; when its turn comes the relay releases it.
"""

import threading
from datetime import datetime
from typing import Any, Final

from dispatcher.job import Manifest, style_label, style_of

WAITS_ANNOTATION: Final = "lora-trainer.io/waits-for-style"
"""Since when, in nanoseconds of Unix time, a Job waits for its style; the order of release."""

Place = tuple[int, str]
"""Sorts the Jobs of a style: when the Job was accepted, then its name."""


class StyleLanes:
    """Who trains which style, and who is next; thread-safe, made anew from the Jobs at each start."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: dict[str, dict[str, Place]] = {}
        self._style_of: dict[str, str] = {}

    def enter(self, job: Manifest, accepted_ns: int) -> bool:
        """Take a place for a Job about to be created; whether its style is free, so that it may start."""
        name, style = job["metadata"]["name"], _key(job)
        with self._lock:
            lane = self._lanes.setdefault(style, {})
            free = not any(other != name for other in lane)
            lane.setdefault(name, (accepted_ns, name))
            self._style_of[name] = style
            return free

    def observe(self, job: Manifest, *, finished: bool) -> None:
        """Take note of a Job that the backend shows."""
        name = job["metadata"]["name"]
        if finished:
            self.leave(name)
            return
        with self._lock:
            style = _key(job)
            self._lanes.setdefault(style, {})[name] = _place(job)
            self._style_of[name] = style

    def leave(self, name: str) -> None:
        with self._lock:
            style = self._style_of.pop(name, None)
            lane = self._lanes.get(style) if style else None
            if style and lane is not None:
                lane.pop(name, None)
                if not lane:
                    del self._lanes[style]

    def is_next(self, name: str) -> bool:
        """Whether no Job of the same style that is not finished came before this one."""
        with self._lock:
            lane = self._lanes.get(self._style_of.get(name, ""), {})
            return not lane or min(lane.values())[1] == name

    def count(self) -> int:
        """Return how many Jobs are not finished."""
        with self._lock:
            return len(self._style_of)

    def others(self, name: str) -> list[str]:
        """Return the other Jobs of the style, to look at when this one is done."""
        with self._lock:
            lane = self._lanes.get(self._style_of.get(name, ""), {})
            return [other for other in lane if other != name]


def hold(job: Manifest, accepted_ns: int) -> None:
    """Make a Job about to be created wait for its style."""
    job["spec"]["suspend"] = True
    job["metadata"].setdefault("annotations", {})[WAITS_ANNOTATION] = str(accepted_ns)


def waits(job: dict[str, Any]) -> bool:
    annotations = job["metadata"].get("annotations") or {}
    return bool(job["spec"].get("suspend")) and WAITS_ANNOTATION in annotations


def _key(job: Manifest) -> str:
    return style_label(style_of(job) or job["metadata"]["name"])


def _place(job: Manifest) -> Place:
    metadata = job["metadata"]
    accepted = (metadata.get("annotations") or {}).get(WAITS_ANNOTATION, "")
    if accepted.isdigit():
        return int(accepted), metadata["name"]
    created = datetime.fromisoformat(metadata["creationTimestamp"])
    return int(created.timestamp()) * 1_000_000_000, metadata["name"]
