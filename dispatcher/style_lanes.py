"""Two requests for one style never train at once: they would write the same files.

A Job whose style is taken is created suspended; when its turn comes the relay releases it. Where
several dispatchers take requests none of them knows what another is creating: there every Job is
created suspended, and the one that relays, of which there is one at a time, releases them in order.
A Job that waits is in no queue of Kueue's, which would start it; it enters its queue at its turn.
"""

import threading
import time
from typing import Any, Final

from dispatcher.job import QUEUE_LABEL, Manifest, style_label, style_of

WAITS_ANNOTATION: Final = "lora-trainer.io/waits-for-style"
"""Since when, in nanoseconds of Unix time, a Job waits for its style; the order of release."""

_QUEUE_ANNOTATION: Final = "lora-trainer.io/queue-at-its-turn"
"""The queue of Kueue's that a Job enters when its turn comes."""

Place = tuple[int, str]
"""Sorts the Jobs of a style: those that may run first, then by when they were accepted, then by name."""

_MAY_RUN: Final = 0
_EXPECTED_SECONDS: Final = 300.0


class StyleLanes:
    """Who trains which style, and who is next; thread-safe, made anew from the Jobs at each start.

    Args:
        shared: other dispatchers take requests too, so that no Job may start before it is released.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._lock = threading.Lock()
        self._lanes: dict[str, dict[str, Place]] = {}
        self._style_of: dict[str, str] = {}
        self._expected_until: dict[str, float] = {}
        self._started: set[str] = set()
        """The Jobs that were released, or seen to be; a watch that is behind shows them waiting still."""

    def enter(self, job: Manifest, accepted_ns: int) -> int | None:
        """Take a place for a Job about to be created.

        Returns None when it may start, its style being free; else its place in the order of release.
        """
        name, style = job["metadata"]["name"], _key(job)
        with self._lock:
            lane = self._lanes.setdefault(style, {})
            place = lane.setdefault(name, (accepted_ns if lane or self._shared else _MAY_RUN, name))
            self._style_of[name] = style
            self._expected_until[name] = time.monotonic() + _EXPECTED_SECONDS
            if self._shared:
                return place[0] or accepted_ns
            if _may_go(lane, name):
                lane[name] = (_MAY_RUN, name)
                return None
            return place[0] or accepted_ns

    def expected_for(self, name: str) -> float:
        """Return the seconds for which a Job that entered and was not seen yet keeps its place.

        A create that timed out may have been carried out, and the watch may be late.
        """
        with self._lock:
            return max(0.0, self._expected_until.get(name, 0.0) - time.monotonic())

    def cancel(self, name: str) -> None:
        """Expect a Job no longer: it was not created, and will not be."""
        with self._lock:
            self._expected_until.pop(name, None)

    def observe(self, job: Manifest) -> None:
        """Take note of an unfinished Job that the backend shows."""
        name, style, place = job["metadata"]["name"], _key(job), _place(job)
        with self._lock:
            if place[0] == _MAY_RUN:
                self._started.add(name)
            elif name in self._started:
                place = (_MAY_RUN, name)
            self._lanes.setdefault(style, {})[name] = place
            self._style_of[name] = style
            self._expected_until.pop(name, None)

    def leave(self, name: str) -> bool:
        """Forget a Job that is finished or gone; whether it was known."""
        with self._lock:
            self._expected_until.pop(name, None)
            self._started.discard(name)
            style = self._style_of.pop(name, None)
            lane = self._lanes.get(style) if style else None
            if style and lane is not None:
                lane.pop(name, None)
                if not lane:
                    del self._lanes[style]
            return style is not None

    def is_next(self, name: str) -> bool:
        """Whether no Job of the same style that is not finished may run or came before this one."""
        with self._lock:
            return _may_go(self._lanes.get(self._style_of.get(name, ""), {}), name)

    def start(self, name: str) -> bool:
        """Take note that a Job is about to be started; False when another came before it meanwhile."""
        with self._lock:
            lane = self._lanes.get(self._style_of.get(name, ""), {})
            if not _may_go(lane, name):
                return False
            lane[name] = (_MAY_RUN, name)
            self._started.add(name)
            return True

    def count(self, besides: str) -> int:
        """Return how many other Jobs are not finished."""
        with self._lock:
            return len(self._style_of.keys() - {besides})

    def others(self, name: str) -> list[str]:
        """Return the other Jobs of the style, to look at when this one is done."""
        with self._lock:
            lane = self._lanes.get(self._style_of.get(name, ""), {})
            return [other for other in lane if other != name]


def hold(job: Manifest, accepted_ns: int) -> None:
    """Make a Job about to be created wait for its style."""
    job["spec"]["suspend"] = True
    annotations = job["metadata"].setdefault("annotations", {})
    annotations[WAITS_ANNOTATION] = str(accepted_ns)
    queue = (job["metadata"].get("labels") or {}).pop(QUEUE_LABEL, None)
    if queue:
        annotations[_QUEUE_ANNOTATION] = queue


def end_of_hold(job: Manifest) -> dict[str, Any]:
    """Return the merge patch that lets a Job start that `hold` made wait, or enter its queue of Kueue's.

    Whoever suspends it from then on has another reason, and is left alone.
    """
    queue = (job["metadata"].get("annotations") or {}).get(_QUEUE_ANNOTATION)
    if queue is None:
        return {"spec": {"suspend": False}, "metadata": {"annotations": {WAITS_ANNOTATION: None}}}
    # A queue may be named as long as a Job is suspended, and only Kueue ends that now.
    annotations = {WAITS_ANNOTATION: None, _QUEUE_ANNOTATION: None}
    return {"metadata": {"labels": {QUEUE_LABEL: queue}, "annotations": annotations}}


def waits(job: dict[str, Any]) -> bool:
    annotations = job["metadata"].get("annotations") or {}
    return bool(job["spec"].get("suspend")) and WAITS_ANNOTATION in annotations


def _may_go(lane: dict[str, Place], name: str) -> bool:
    """Whether no other Job of the lane may run, and none has an earlier place.

    Two may run when somebody started a rerun by hand: what has not started yet waits for all of them.
    """
    return name in lane and all(
        place[0] > _MAY_RUN and lane[name] < place for other, place in lane.items() if other != name
    )


def _key(job: Manifest) -> str:
    style = style_of(job)
    return style_label(job["metadata"]["name"] if style is None else style)


def _place(job: Manifest) -> Place:
    """A Job that may run comes before all that wait, whatever the clocks of two machines say."""
    name = job["metadata"]["name"]
    accepted = (job["metadata"].get("annotations") or {}).get(WAITS_ANNOTATION, "")
    return (int(accepted), name) if waits(job) and accepted.isdigit() else (_MAY_RUN, name)
