"""The benchmark counts what it says, and a step asks for nothing that it should not."""

from pathlib import Path

import pytest
import torch

from bench_operators import OperatorCount, Operators
from bench_plan import BenchPlan
from tests.trainer.rig import Rig


def operators_of_a_step(rig: Rig) -> Operators:
    """Count what the third step of an epoch asks for."""
    step, steps = rig.parts.optimizer.step, 0
    counter = OperatorCount()
    found: list[Operators] = []

    def counted() -> torch.Tensor:
        nonlocal steps
        norm = step()
        steps += 1
        if steps == 2:
            counter.start()
        if steps == 3:
            found.append(counter.stop())
        return norm

    rig.parts.optimizer.step = counted  # type: ignore[method-assign]  # to see between two steps
    rig.training().train()
    return found[0]


def test_operators_that_compute_are_counted_and_views_are_not() -> None:
    counter = OperatorCount()
    x = torch.ones(4, 4)
    counter.start()
    y = x.t().reshape(2, 8).transpose(0, 1)[1:]
    y = y + y
    torch.nn.functional.linear(x, x)  # a composite: one matrix product does its work
    operators = counter.stop()
    # The reshape of a transposed tensor copies.
    assert operators.kernels == {"copy_": 1, "add": 1, "mm": 1}
    assert operators.waits == 0


def test_every_way_to_wait_for_the_device_is_counted() -> None:
    counter = OperatorCount()
    x = torch.ones(3)
    counter.start()
    _ = x.sum().item(), float(x[0]), bool(x.any()), x.tolist()
    assert counter.stop().waits == 3  # tolist() of a CPU's tensor reads its memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_step_never_waits_for_the_device(tiny_base: Path, dtype: torch.dtype) -> None:
    """One item() a step, for a progress bar or a norm, costs a GPU its queue."""
    assert operators_of_a_step(Rig(tiny_base, dtype, num_epochs=1)).waits == 0


def test_step_asks_for_few_operators_beyond_the_adapters_own(tiny_base: Path) -> None:
    """peft's own forward casts, and an optimizer over 256 tensors, asked for five thousand more."""
    operators = operators_of_a_step(Rig(tiny_base, torch.float16, num_epochs=1))
    assert operators.kernels.total() < 3500
    assert operators.kernels["_fused_adamw_"] == 1
    assert operators.kernels["linalg_vector_norm"] <= 1


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 30), (4, 9), (16, 3)])
def test_plan_counts_the_last_batch_that_is_not_full(batch_size: int, steps: int) -> None:
    plan = BenchPlan("base", "pictures", 10, 3, batch_size, 512, "no")
    assert plan.images == 30
    assert plan.steps == steps
