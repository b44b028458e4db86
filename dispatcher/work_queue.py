"""A queue of names to look at: each at most once at a time, now or later.

What client-go calls a rate-limiting work queue. A name that is added while it is being worked on is
handed out again afterwards, so no change is missed and no two workers meet on one Job.
"""

import heapq
import threading
import time
from collections import Counter

from dispatcher.retry import backoff_seconds


class WorkQueue:
    """Thread-safe; times are seconds of the monotonic clock.

    Args:
        first_retry_seconds: after the first failure; doubled from there.
        most_retry_seconds: the longest wait after a failure.
    """

    def __init__(self, first_retry_seconds: float = 1.0, most_retry_seconds: float = 300.0) -> None:
        self._first_retry_seconds = first_retry_seconds
        self._most_retry_seconds = most_retry_seconds
        self._condition = threading.Condition()
        self._due: dict[str, tuple[float, bool]] = {}
        """When a name is due, and whether only for a worker that takes what is slow."""
        self._heaps: dict[bool, list[tuple[float, str]]] = {False: [], True: []}
        self._active: set[str] = set()
        self._failures: Counter[str] = Counter()
        self._closed = False

    def add(self, name: str, delay: float = 0.0, *, slow: bool = False) -> None:
        """Hand out a name after `delay` seconds, or sooner when it was due sooner.

        Args:
            slow: what is due may take long, so that a worker for quick work is not to have it. Who adds
                the name otherwise does not know that, and has it looked at by any.
        """
        with self._condition:
            was_due, was_slow = self._due.get(name, (float("inf"), True))
            self._due[name] = due = (min(was_due, time.monotonic() + delay), slow and was_slow)
            if name not in self._active and due != (was_due, was_slow):
                self._push(name)

    def add_failed(self, name: str, at_least: float | None = None) -> None:
        """Hand out a name again after its work failed, later each time, until `succeeded`.

        Args:
            at_least: the seconds that the other side asked for (Retry-After).
        """
        with self._condition:
            self._failures[name] += 1
            delay = backoff_seconds(
                self._failures[name],
                first=self._first_retry_seconds,
                most=self._most_retry_seconds,
                at_least=at_least,
            )
            self.add(name, delay)

    def succeeded(self, name: str) -> None:
        """Forget the failures of a name, unless what is due was only found to be slow."""
        with self._condition:
            if self._due.get(name, (0.0, False))[1] is False:
                self._failures.pop(name, None)

    def get(self, *, slow: bool = True) -> str | None:
        """Wait for the next name that is due; None once the queue is closed.

        Args:
            slow: take what was added as slow too.
        """
        with self._condition:
            while not self._closed:
                kind = min((False, True) if slow else (False,), key=self._next_due)
                remaining = self._next_due(kind) - time.monotonic()
                if remaining <= 0:
                    _, name = heapq.heappop(self._heaps[kind])
                    del self._due[name]
                    self._active.add(name)
                    return name
                self._condition.wait(remaining if self._heaps[kind] else None)
            return None

    def done(self, name: str) -> None:
        """Say that the work on a name that `get` handed out has ended."""
        with self._condition:
            self._active.discard(name)
            if name in self._due:
                self._push(name)

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def __len__(self) -> int:
        with self._condition:
            return len(self._due) + len(self._active)

    def _push(self, name: str) -> None:
        due, slow = self._due[name]
        heapq.heappush(self._heaps[slow], (due, name))
        if slow:
            self._condition.notify_all()  # a worker for quick work would let it lie
        else:
            self._condition.notify()

    def _next_due(self, slow: bool) -> float:
        """Return when the next of a kind is due; one that is due at another time by now is dropped."""
        heap = self._heaps[slow]
        while heap and self._due.get(heap[0][1]) != (heap[0][0], slow):
            heapq.heappop(heap)
        return heap[0][0] if heap else float("inf")
