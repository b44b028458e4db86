"""Whether trainings of ours hold what others wait for: a GPU, a volume, a part of a quota."""

import threading
from collections.abc import Callable, Iterable
from datetime import datetime

from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis
from dispatcher.job import Manifest
from dispatcher.pod_status import is_on_node


class Room:
    """Which Jobs have a pod on a node; thread-safe, made anew at each start from the Jobs as they are seen.

    Args:
        now: the clock. Before the first Job is seen, room counts as free from now on.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._taken_by: set[str] = set()
        self._free_since = now()

    def observe(self, job: Manifest, diagnosis: Diagnosis, pods: Iterable[Manifest]) -> None:
        """Take note of whether a Job takes room.

        A Job whose pod has a node but still waits for a volume counts as taking none: else two that wait for
        somebody else's volume would each wait for the other.
        """
        name = job["metadata"]["name"]
        if not any(map(is_on_node, pods)):
            self.forget(name)
            return
        with self._lock:
            if diagnosis.stuck and diagnosis.stuck.for_room:
                self._taken_by.discard(name)
            elif VERDICT_ANNOTATION not in (job["metadata"].get("annotations") or {}):
                # One that is given up is not asked any more what it lacks: what was known of it stays.
                self._taken_by.add(name)

    def forget(self, name: str) -> None:
        with self._lock:
            if name in self._taken_by:
                self._taken_by.remove(name)
                self._free_since = self._now()

    def free_since(self) -> datetime | None:
        """Return since when none of our trainings takes room; None while one does."""
        with self._lock:
            return None if self._taken_by else self._free_since
