"""Waits grow, are spread, stay below the most, and never undercut what the other side asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.retry import backoff_seconds


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(0, 1), (1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (10_000, 300)]
)
def test_waits_double_up_to_the_most(attempt: int, seconds: float) -> None:
    assert backoff_seconds(attempt, jitter=lambda: 0.5) == pytest.approx(seconds)


def test_waits_are_spread_by_a_fifth_so_that_clients_do_not_come_back_together() -> None:
    assert backoff_seconds(3, jitter=lambda: 0.0) == pytest.approx(3.2)
    assert backoff_seconds(3, jitter=lambda: 1.0) == pytest.approx(4.8)


@given(st.integers(), st.floats(0.001, 10), st.floats(10, 1000), st.none() | st.floats(0, 1e6))
def test_no_wait_undercuts_retry_after_or_exceeds_the_most(
    attempt: int, first: float, most: float, at_least: float | None
) -> None:
    seconds = backoff_seconds(attempt, first=first, most=most, at_least=at_least)
    assert seconds >= max(at_least or 0, first * 0.8)
    assert seconds <= max(at_least or 0, most * 1.2)
