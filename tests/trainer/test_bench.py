"""The benchmark counts what it says it counts."""

import torch

from bench_operators import OperatorCount


def test_operators_that_compute_are_counted_and_views_are_not() -> None:
    counter = OperatorCount()
    x = torch.ones(4, 4)
    counter.start()
    y = x.t().reshape(2, 8).transpose(0, 1)[1:]
    y = y + y
    torch.nn.functional.linear(x, x)  # a composite: one matrix product does its work
    assert counter.stop() == 2 + 1  # the reshape of a transposed tensor copies
