"""A queue of names to look at: each at most once at a time, now or later.

What client-go calls a rate-limiting work queue. A name that is added while it is being worked on is
handed out again afterwards, so no change is missed and no two workers meet on one Job. What is due may be
to ask another host, which may take its time to answer: those that ask one host stand in a line of its own,
and leave workers to the others.
"""

import heapq
import threading
import time
from collections import Counter

from dispatcher.retry import backoff_seconds


class WorkQueue:
    """Thread-safe; times are seconds of the monotonic clock.

    Args:
        askers: so many workers may ask other hosts at once; there are more, for what is quick.
        first_retry_seconds: after the first failure; doubled from there.
        most_retry_seconds: the longest wait after a failure.
    """

    def __init__(
        self, askers: int, first_retry_seconds: float = 1.0, most_retry_seconds: float = 300.0
    ) -> None:
        self._askers = askers
        self._first_retry_seconds = first_retry_seconds
        self._most_retry_seconds = most_retry_seconds
        self._condition = threading.Condition()
        self._due: dict[str, tuple[float, str | None]] = {}
        """When a name is due, and the host in whose line it stands, if any."""
        self._lines: dict[str | None, list[tuple[float, str]]] = {None: []}
        """Heaps: of the names that any worker may have, and of those that wait to ask a host."""
        self._active: dict[str, float] = {}
        """When what is being worked on was due."""
        self._asking: dict[str, str] = {}
        self._failures: Counter[str] = Counter()
        self._closed = False

    def add(self, name: str, delay: float = 0.0) -> None:
        """Hand out a name after `delay` seconds, or sooner when it was due sooner.

        One that stands in a line leaves it: what is due by now may be quick.
        """
        with self._condition:
            was_due, line = self._due.get(name, (float("inf"), None))
            due = min(was_due, time.monotonic() + delay)
            if (due, None) != (was_due, line):
                self._put(name, due, None)

    def may_ask(self, name: str, host: str) -> bool:
        """Whether who works on a name may ask a host now, and wait for it until `done`.

        If not, the name stands in the host's line, at the place that it has by when it became due, and is
        handed out at its turn. A host is asked by no more workers than it leaves for the other hosts.
        """
        with self._condition:
            if self._asking.get(name) == host:
                return True
            if self._has_room(host) and self._next_due(host) == float("inf"):
                self._asking[name] = host
                return True
            # One that was added meanwhile is looked at again first.
            due, line = self._due.get(name, (float("inf"), host))
            self._put(name, min(due, self._active[name]), line)
            return False

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
        """Forget the failures of a name, unless it only came to stand in a line."""
        with self._condition:
            if self._due.get(name, (0.0, None))[1] is None:
                self._failures.pop(name, None)

    def get(self) -> str | None:
        """Wait for the next name that is due; None once the queue is closed."""
        with self._condition:
            while not self._closed:
                lines = [host for host in self._lines if host is None or self._has_room(host)]
                host = min(lines, key=self._next_due)
                due = self._next_due(host)
                remaining = due - time.monotonic()
                if remaining <= 0:
                    _, name = heapq.heappop(self._lines[host])
                    del self._due[name]
                    self._active[name] = due
                    if host is not None:
                        self._asking[name] = host
                    return name
                self._condition.wait(remaining if remaining < float("inf") else None)
            return None

    def done(self, name: str) -> None:
        """Say that the work on a name that `get` handed out has ended."""
        with self._condition:
            del self._active[name]
            if name in self._due:
                self._push(name)
            if self._asking.pop(name, None) is not None and len(self._lines) > 1:
                self._condition.notify_all()  # whichever of them wakes first may have a line's next

    def close(self) -> None:
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def __len__(self) -> int:
        with self._condition:
            return len(self._due) + len(self._active)

    def _put(self, name: str, due: float, host: str | None) -> None:
        self._due[name] = (due, host)
        if name not in self._active:
            self._push(name)

    def _push(self, name: str) -> None:
        due, host = self._due[name]
        heapq.heappush(self._lines.setdefault(host, []), (due, name))
        self._condition.notify()

    def _has_room(self, host: str) -> bool:
        """Whether one more worker may ask a host: only while fewer do than may still ask others."""
        return list(self._asking.values()).count(host) < self._askers - len(self._asking)

    def _next_due(self, host: str | None) -> float:
        """Return when the next of a line is due; what has another place by now, or a worker, is dropped."""
        line = self._lines.get(host, [])
        while line and (line[0][1] in self._active or self._due.get(line[0][1]) != (line[0][0], host)):
            heapq.heappop(line)
        if not line and host is not None:
            self._lines.pop(host, None)
        return line[0][0] if line else float("inf")
