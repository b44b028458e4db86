"""A queue of names to look at: each at most once at a time, now or later.

What client-go calls a rate-limiting work queue. A name that is added while it is being worked on is
handed out again afterwards, so no change is missed and no two workers meet on one Job.
"""

import heapq
import threading
import time


class WorkQueue:
    """Thread-safe; times are seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._active: set[str] = set()
        self._closed = False

    def add(self, name: str, delay: float = 0.0) -> None:
        """Hand out a name after `delay` seconds, or sooner when it was due sooner."""
        due = time.monotonic() + delay
        with self._condition:
            if due < self._due.get(name, float("inf")):
                self._due[name] = due
                if name not in self._active:
                    heapq.heappush(self._heap, (due, name))
                    self._condition.notify()

    def get(self) -> str | None:
        """Wait for the next name that is due; None once the queue is closed."""
        with self._condition:
            while not self._closed:
                now = time.monotonic()
                while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
                    heapq.heappop(self._heap)  # replaced by an earlier time, or handed out already
                if self._heap and self._heap[0][0] <= now:
                    _, name = heapq.heappop(self._heap)
                    del self._due[name]
                    self._active.add(name)
                    return name
                self._condition.wait(self._heap[0][0] - now if self._heap else None)
            return None

    def done(self, name: str) -> None:
        """Say that the work on a name that `get` handed out has ended."""
        with self._condition:
            self._active.discard(name)
            if name in self._due:
                heapq.heappush(self._heap, (self._due[name], name))
                self._condition.notify()

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def __len__(self) -> int:
        with self._condition:
            return len(self._due) + len(self._active)
