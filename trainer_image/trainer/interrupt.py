"""SIGTERM and SIGINT, noticed wherever the trainer is: in an import, a download, a step, an upload.

The handler raises in the main thread, so whatever Python code runs there ends at once. A flag that is
looked at between steps would miss the minutes before the first and after the last one.
"""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from select import select
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

_REMINDER_SECONDS: Final = 0.2


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
        self._noticed = False
        self._shields = 0
        self._end: Callable[[], NoReturn] | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self.arrivals, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        self._previous_wakeup = signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._notice)
        self._over = threading.Event()
        self._reminder = threading.Thread(target=self._remind, args=(threading.get_ident(),), daemon=True)
        self._reminder.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with suppress(BlockingIOError):  # full of reminders, which wake it as well
            self._wakeup.send(b"\0")
        self._reminder.join()
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wakeup)
        self.arrivals.close()
        self._wakeup.close()

    def _remind(self, main: int) -> None:
        """Send the signal again until its handler has run.

        One that comes just before the main thread falls asleep, or to another thread, does not wake it.
        """
        select([self.arrivals], [], [])
        while not self._over.wait(_REMINDER_SECONDS) and not self.event.is_set():
            signal.pthread_kill(main, signal.SIGTERM)

    def _notice(self, _number: int, _frame: FrameType | None) -> None:
        # Only once: a second signal must not break off the saving that the first one caused, nor come while
        # the event's lock is held.
        if self._noticed:
            return
        self._noticed = True
        self.event.set()
        if self._end:
            self._end()
        if not self._shields:
            raise StopRequested

    def listen(self) -> None:
        """Take the signals that were held back while the program started."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))

    def check(self) -> None:
        """Raise StopRequested if a signal came and some library swallowed it, or a shield held it back."""
        if self.event.is_set() and not self._shields:
            raise StopRequested

    def close(self) -> None:
        """Let no later signal change the outcome, which stands now."""
        self._shields += 1

    @contextmanager
    def ended_by(self, end: Callable[[], NoReturn]) -> Iterator[None]:
        """Let a signal call end, which ends the process, instead of raising: for imports.

        numpy's C code takes whatever is raised in them for a failure of its own, and fails later, otherwise.
        """
        self._end = end
        try:
            yield
        finally:
            self._end = None

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let what runs inside come to its end; a signal meanwhile is raised after it."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        self.check()
