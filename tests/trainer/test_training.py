"""The loop: what stops it, what it survives, and that batches, halves and parts add up to the same."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.rig import IMAGES, Rig, randomize
from trainer.errors import OutOfMemoryError, TrainingError
from trainer.interrupt import StopRequested
from trainer.processes import ProcessGroup
from trainer.randomness import EpochDraws
from trainer.training import Training


def out_of_memory(_output: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=["a kernel that is loaded", "cuBLAS", "cuDNN"],
)
def test_memory_that_a_library_is_refused_is_out_of_memory_too(tiny_base: Path, error: Exception) -> None:
    """torch.OutOfMemoryError is its own allocator's only."""

    def fail(_output: Any) -> None:
        raise error

    rig = Rig(tiny_base)
    rig.break_forward({1}, fail)
    rig.training().train()
    assert rig.parts.unet.is_gradient_checkpointing


def test_loss_falls_over_many_steps(tiny_base: Path) -> None:
    """The plainest fault of all: gradients that go nowhere."""
    rig = Rig(tiny_base, num_epochs=8)

    def loss_of_a_batch() -> float:
        training = rig.training()
        draws = training._draw(99)
        return float(training._gradients([0, 1, 2, 3], draws))

    before = loss_of_a_batch()
    rig.parts.adapter.gradients.zero_()
    rig.training().train()
    assert loss_of_a_batch() < before - 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_that_is_not_a_number_stops_with_its_step(
    tiny_base: Path, value: str, dtype: torch.dtype
) -> None:
    """Hiding it costs a whole training (failures 9 and 10). Nothing of that epoch is saved.

    In float16 the scaler skips such steps, as if its factor were too large, and the training goes on.
    """
    rig = Rig(tiny_base, dtype)
    rig.break_forward({6}, lambda output: (output[0] * float(value),))
    with pytest.raises(TrainingError, match=f"loss is {value} at step 6"):
        rig.training().train()
    assert [checkpoint.epoch for checkpoint in rig.checkpoints] == [1]


def test_gradient_that_is_not_a_number_stops_with_its_step(tiny_base: Path) -> None:
    rig = Rig(tiny_base)
    rig.break_forward({3}, lambda output: (output[0] + 0 * (output[0] - output[0].detach()).sqrt(),))
    with pytest.raises(TrainingError, match=r"gradient is (nan|inf) at step 3"):
        rig.training().train()


def test_few_steps_that_the_scaler_skips_are_counted_and_survived(tiny_base: Path) -> None:
    """The first factor is meant to overflow once or twice."""
    rig = Rig(tiny_base, torch.float16, num_epochs=3)
    spoilt = iter([float("inf"), float("inf")])
    rig.parts.unet.mid_block.register_full_backward_hook(
        lambda _module, gradients, _: (gradients[0] * next(spoilt, 1.0), *gradients[1:])
    )
    rig.training().train()
    assert rig.epochs[-1].skipped_steps == 2
    assert torch.isfinite(rig.weights).all()
    assert rig.parts.optimizer.steps_taken == 3 * IMAGES - 2


@pytest.mark.parametrize(
    ("full_at", "sizes", "checkpointing"),
    [({1}, [4, 2, 2], False), ({1, 2}, [4, 2, 1, 1, 1, 1], False), ({1, 2, 3}, [4, 2, 1, 1, 1, 1, 1], True)],
)
def test_out_of_memory_goes_on_with_steps_half_as_large_to_the_same_weights(
    tiny_base: Path, full_at: set[int], sizes: list[int], checkpointing: bool
) -> None:
    """Checkpointing costs a third of the speed, so it comes last."""
    plain = Rig(tiny_base, batch_size=4)
    plain.training().train()
    rig, found = Rig(tiny_base, batch_size=4), []
    rig.parts.unet.register_forward_pre_hook(lambda _module, inputs: found.append(len(inputs[0])))
    rig.break_forward(full_at, out_of_memory)
    rig.training().train()
    assert found[: len(sizes)] == sizes
    assert rig.parts.unet.is_gradient_checkpointing is checkpointing
    # AdamW's first steps are signs of the gradients; where these are all but zero a sign may differ.
    assert (rig.weights - plain.weights).norm() < 1e-2 * plain.weights.norm()
    torch.testing.assert_close(rig.epochs[0].loss, plain.epochs[0].loss, rtol=1e-4, atol=0)


def test_out_of_memory_twice_ends_with_a_sentence(tiny_base: Path) -> None:
    rig = Rig(tiny_base)
    rig.break_forward({1, 2}, out_of_memory)
    with pytest.raises(OutOfMemoryError, match="at least 6 GB"):
        rig.training().train()


def test_gradients_of_parts_of_a_batch_add_up_to_those_of_the_batch(tiny_base: Path) -> None:
    """What makes several GPUs, and the smaller steps of a full GPU, train the same thing."""
    rig = Rig(tiny_base, batch_size=3)
    gradients = rig.parts.adapter.gradients

    def gradients_of(size: int) -> Tensor:
        total = torch.zeros_like(gradients)
        for rank in range(size):
            training = rig.training(ProcessGroup(rank, size))
            draws = training._draw(1)
            training._gradients(draws.batches[0], draws)
            total += gradients
            gradients.zero_()
        return total

    randomize(rig.parts.adapter, std=0.1)
    whole = gradients_of(1)
    assert whole.abs().max() > 0
    for size in (2, 3, 4):
        torch.testing.assert_close(gradients_of(size), whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_loss_of_an_epoch_is_the_mean_over_its_images_and_not_over_its_steps(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four pictures in batches of three, one counted as much as the other three together."""
    rig, batches, gradients = Rig(tiny_base, batch_size=3, num_epochs=1), [], Training._gradients

    def recording(self: Training, batch: list[int], draws: EpochDraws) -> Tensor:
        loss = gradients(self, batch, draws)
        batches.append((len(batch), float(loss)))
        return loss

    monkeypatch.setattr(Training, "_gradients", recording)
    rig.training().train()
    assert sorted(size for size, _ in batches) == [1, 3]
    assert rig.epochs[0].loss == pytest.approx(sum(size * loss for size, loss in batches) / IMAGES)
    assert rig.epochs[0].loss != pytest.approx(sum(loss for _, loss in batches) / 2, rel=1e-3)


def test_loss_of_an_epoch_is_the_same_after_an_interruption_between_its_batches(tiny_base: Path) -> None:
    whole = Rig(tiny_base, batch_size=3, num_epochs=1)
    whole.training().train()
    first = Rig(tiny_base, batch_size=3, num_epochs=1)
    first.break_forward({2}, lambda _output: (_ for _ in ()).throw(StopRequested()))
    with pytest.raises(StopRequested):
        first.training().train()
    second = Rig(tiny_base, batch_size=3, num_epochs=1)
    training = second.training()
    training.restore(first.checkpoints[-1])
    training.train()
    assert second.epochs[0].loss == whole.epochs[0].loss


def test_number_of_epochs_counts_passes_whatever_the_batch_size(tiny_base: Path) -> None:
    rig = Rig(tiny_base, batch_size=3, num_epochs=3)
    rig.training().train()
    assert [metrics.step for metrics in rig.epochs] == [2, 4, 6]


def test_noise_offset_shifts_each_channel_as_a_whole(tiny_base: Path) -> None:
    rig = Rig(tiny_base)
    without = rig.training()._draw(1)
    rig.plan = replace(rig.plan, noise_offset=0.5)
    shift = rig.training()._draw(1).noise[0] - without.noise[0]
    torch.testing.assert_close(shift, (0.5 * without.offsets[0])[:, None, None].expand(4, 8, 8))


def test_checkpoint_is_enough_to_go_on_bit_for_bit(tiny_base: Path) -> None:
    whole = Rig(tiny_base, num_epochs=3)
    whole.training().train()
    first = Rig(tiny_base, num_epochs=3)
    first.plan = replace(first.plan, epochs=1)
    first.training().train()
    second = Rig(tiny_base, num_epochs=3)
    torch.manual_seed(12345)  # nothing may depend on it
    training = second.training()
    training.restore(first.checkpoints[-1])
    training.train()
    assert torch.equal(second.weights, whole.weights)
    assert [metrics.loss for metrics in second.epochs] == [metrics.loss for metrics in whole.epochs[1:]]


def test_next_epoch_is_drawn_while_the_device_still_computes(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ten images a stall at every epoch's end costs as much as the steps (failure 16)."""
    rig, order = Rig(tiny_base), []
    draw, check = Training._draw, Training._check_numbers

    def drawing(self: Training, epoch: int) -> Any:
        order.append(f"draw {epoch}")
        return draw(self, epoch)

    def waiting(self: Training) -> Any:
        order.append(f"wait for {self.epoch + 1}")
        return check(self)

    monkeypatch.setattr(Training, "_draw", drawing)
    monkeypatch.setattr(Training, "_check_numbers", waiting)
    rig.training().train()
    assert order[:3] == ["draw 1", "draw 2", "wait for 1"]
