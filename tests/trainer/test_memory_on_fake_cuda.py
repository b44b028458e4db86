"""What a training of SD 1.5 holds of a GPU's memory, counted without one: see fake_cuda.py."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.trainer.bench_memory import MIB, bytes_of_the_encoding, bytes_of_the_samples
from tests.trainer.fake_cuda import CUDA, fake_cuda
from tests.trainer.fake_training import recorded_step
from tests.trainer.operator_log import OperatorLog

CARD = 6 * 10**9
BESIDE_THE_TENSORS = 1536 * MIB
"""An estimate: CUDA's context, workspaces of cuDNN and cuBLAS, and the gaps in the allocator's blocks."""


def test_memory_is_counted_in_blocks_while_a_tensor_or_a_view_of_it_lives() -> None:
    with fake_cuda(), OperatorLog() as log:
        numbers = torch.zeros(1000, device=CUDA)
        part = numbers[:10]
        assert log.bytes == 4096
        del numbers
        squares = part * part
        assert log.bytes == 4096 + 512
        del part, squares
        on_the_cpu = torch.zeros(1000)
        assert (log.bytes, log.peak_bytes) == (0, 4096 + 512)
        assert on_the_cpu.device.type == "cpu"


def test_batch_of_one_fits_a_card_of_6_gb_without_checkpointing(tiny_base: Path) -> None:
    """Checkpointing costs a third of the speed, so a card of that size must not need it."""
    assert recorded_step(tiny_base).peak_bytes + BESIDE_THE_TENSORS < CARD


@pytest.mark.parametrize("measure", [bytes_of_the_encoding, bytes_of_the_samples])
def test_encoding_and_samples_fit_a_card_of_6_gb(tiny_base: Path, measure: Callable[[Path], int]) -> None:
    """All three models are there while the pictures are encoded, VAE and text encoder in float32."""
    assert measure(tiny_base) + BESIDE_THE_TENSORS < CARD


def test_step_leaves_nothing_behind(tiny_base: Path) -> None:
    """A training has thousands of them."""
    step = recorded_step(tiny_base)
    assert step.bytes_after == step.bytes_before


def test_checkpointing_saves_most_of_what_a_step_takes(tiny_base: Path) -> None:
    """It is the way out of a card that is too small, and must be one."""
    step, lean = recorded_step(tiny_base), recorded_step(tiny_base, checkpointing=True)
    assert lean.peak_bytes - lean.bytes_before < 0.4 * (step.peak_bytes - step.bytes_before)
