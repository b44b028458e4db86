"""How long to wait before the next attempt: pure, so that the waiting is testable without waiting."""

import random
from collections.abc import Callable


def backoff_seconds(
    attempt: int,
    *,
    first: float = 1.0,
    most: float = 300.0,
    at_least: float | None = None,
    jitter: Callable[[], float] = random.random,
) -> float:
    """Return the seconds before attempt + 1: first x 2^(attempt - 1), at most `most`, -20% to +20%.

    Args:
        attempt: the attempts made so far, from 1.
        at_least: what the other side asked for (Retry-After); it is never undercut.
    """
    seconds = min(most, first * 2.0 ** min(max(attempt, 1) - 1, 30)) * (0.8 + 0.4 * jitter())
    return max(seconds, at_least or 0.0)
