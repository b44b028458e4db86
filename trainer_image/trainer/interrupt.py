"""SIGTERM and SIGINT, noticed wherever the trainer is: in an import, a download, a step, an upload.

The handler raises in the main thread, so whatever Python code runs there ends at once. A flag that is
looked at between steps would miss the minutes before the first and after the last one.
"""

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self


class StopRequested(KeyboardInterrupt):
    """Raised in the main thread; a KeyboardInterrupt, so libraries' `except Exception` let it through."""


class Interrupt:
    """A context manager that handles the two signals and gives the old handlers back at its end."""

    arrivals: socket.socket
    """Readable once a signal came, even while the main thread sits in a library's C code, where neither the
    handler nor the event's setting can run."""

    def __init__(self) -> None:
        self.event = threading.Event()
        """Set once a signal came; other threads watch it."""
        self._shields = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.arrivals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        self.arrivals.close()
        self._wakeup.close()

    def _notice(self, _number: int, _frame: FrameType | None) -> None:
        first = not self.event.is_set()
        self.event.set()
        # Only once: a second signal must not break off the saving that the first one caused.
        if first and not self._shields:
            raise StopRequested

    def check(self) -> None:
        """Raise StopRequested if a signal came and some library swallowed it, or a shield held it back."""
        if self.event.is_set() and not self._shields:
            raise StopRequested

    def close(self) -> None:
        """Let no later signal change the outcome, which stands now."""
        self._shields += 1

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let what runs inside come to its end; a signal meanwhile is raised after it."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self.check()
