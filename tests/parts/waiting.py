"""Waiting for a state, with a bound."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T | None], timeout: float, what: str) -> T:
    """Return condition's first true value; it is asked ten times a second.

    Raises:
        TimeoutError: there is none after timeout seconds; the text says what was awaited.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {timeout:.0f} s: {what}")
        time.sleep(0.1)
    return value
