"""Signals end whatever runs, but never in the middle of what must be whole."""

import os
import signal
from select import select

import pytest

from trainer.interrupt import Interrupt, StopRequested


def send(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_raises_wherever_the_program_is(number: signal.Signals) -> None:
    with Interrupt() as interrupt, pytest.raises(StopRequested):
        send(number)
    assert interrupt.event.is_set()


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
