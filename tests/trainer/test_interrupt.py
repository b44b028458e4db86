"""Signals end whatever runs, but never in the middle of what must be whole."""

import os
import signal
import threading
from contextlib import suppress
from select import select

import pytest

from job_contract.outcome import FailureCode
from tests.trainer.conftest import Train, Workshop
from trainer.interrupt import Interrupt, StopRequested


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_raises_wherever_the_program_is(number: signal.Signals) -> None:
    with Interrupt() as interrupt, pytest.raises(StopRequested):
        send(number)
    assert interrupt.event.is_set()


def test_signal_that_another_thread_took_ends_a_wait_without_end() -> None:
    """As one does that comes just before the main thread falls asleep: a download was waited for then."""
    lock = threading.Lock()
    lock.acquire()
    with Interrupt():
        threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)).start()
        with pytest.raises(StopRequested):
            lock.acquire()


def test_second_signal_while_the_first_is_noted_waits_for_no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event's lock is held just then; the handler waited for itself."""
    with Interrupt() as interrupt:
        notify_all = interrupt.event._cond.notify_all  # type: ignore[attr-defined]  # threading's own

        def notify() -> None:
            signal.raise_signal(signal.SIGTERM)
            notify_all()

        monkeypatch.setattr(interrupt.event._cond, "notify_all", notify)  # type: ignore[attr-defined]
        with pytest.raises(StopRequested):
            send()


def test_reminders_that_fill_their_socket_do_not_break_the_end() -> None:
    """A minute in a library's C code is enough of them."""
    with Interrupt() as interrupt:
        with suppress(BlockingIOError):
            while True:
                interrupt._wakeup.send(b"\0")
        interrupt.event.set()


def test_signal_that_was_held_back_at_the_start_is_answered() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)  # to this thread: another one may not hold it back
        with pytest.raises(StopRequested):
            interrupt.listen()
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())


INTERRUPTED_WHILE_IT_IMPORTS = """
import os, runpy, signal, sys

class Interrupter:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.{signal})

sys.meta_path.insert(0, Interrupter())
runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("trainer.arguments", "SIGTERM"),
        ("trainer.arguments", "SIGINT"),
        ("numpy.dtypes", "SIGTERM"),
        ("numpy._core._internal", "SIGTERM"),
        ("diffusers.utils", "SIGTERM"),
    ],
)
def test_signal_while_the_program_is_imported_ends_it_as_any_other(
    workshop: Workshop, module: str, number: str
) -> None:
    """Linux drops what a container's first process has no handler for, and the training went on.

    What a handler raises in numpy's imports its C code swallows: the training ended with a RecursionError.
    """
    code = INTERRUPTED_WHILE_IT_IMPORTS.format(module=module, signal=number)
    process = workshop.start(workshop.request(), program=("-c", code))
    _, log = process.communicate(timeout=120)
    outcome = workshop.outcome(process.returncode, log)
    assert outcome.code == 75, log
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.EVICTED


def test_exception_that_a_library_makes_of_the_signals_is_still_the_signals(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a failure of the software it would cost one of the Job's retries, with a reason that is none."""

    def swallow(*_: object, **__: object) -> None:
        with pytest.raises(StopRequested):
            send()
        raise ImportError("cannot import name")

    monkeypatch.setattr("trainer.preparation.load_vae", swallow)
    outcome = train(workshop.request())
    assert outcome.code == 75, outcome.log
    assert "ImportError" in workshop.folder().log.read_text()


def test_arrival_of_a_signal_can_be_waited_for_on_another_thread() -> None:
    """The handler itself runs only when the main thread comes back to Python."""
    with Interrupt() as interrupt:
        interrupt.close()
        assert not select([interrupt.arrivals], [], [], 0)[0]
        send()
        assert select([interrupt.arrivals], [], [], 10)[0]


def test_libraries_that_catch_exceptions_do_not_swallow_it() -> None:
    assert not issubclass(StopRequested, Exception)


def test_shielded_work_ends_before_the_signal_is_raised() -> None:
    steps = []

    def work(interrupt: Interrupt) -> None:
        with interrupt.shielded():
            send()
            steps.append("ended")
        steps.append("went on")

    with Interrupt() as interrupt, pytest.raises(StopRequested):
        work(interrupt)
    assert steps == ["ended"]


def test_second_signal_does_not_break_off_the_saving() -> None:
    saved = []
    with Interrupt() as interrupt:
        with pytest.raises(StopRequested):
            send()
        send()
        saved.append(True)
        with pytest.raises(StopRequested):
            interrupt.check()
    assert saved


def test_signal_after_the_end_changes_nothing() -> None:
    with Interrupt() as interrupt:
        interrupt.close()
        send()
        interrupt.check()


def test_error_inside_a_shield_is_not_replaced_by_the_signal() -> None:
    """A full disk while saving has to be reported as that."""

    def work(interrupt: Interrupt) -> None:
        with interrupt.shielded():
            send()
            raise OSError("full")

    with Interrupt() as interrupt, pytest.raises(OSError, match="full"):
        work(interrupt)


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1
