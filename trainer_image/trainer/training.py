"""The training loop."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.checkpoint import Checkpoint
from trainer.device import is_out_of_memory
from trainer.errors import InterruptedTrainingError, OutOfMemoryError, TrainingError
from trainer.gradient_step import GradientStep, MicroBatch
from trainer.interrupt import Interrupt, StopRequested
from trainer.metrics import EpochMetrics
from trainer.parts import Parts
from trainer.plan import TrainingPlan
from trainer.processes import ProcessGroup
from trainer.randomness import EpochDraws, draw_epoch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hooks:
    """What the loop calls beside the steps. By default nothing: only the first process writes and reports."""

    checkpoint_every: int = sys.maxsize
    """Epochs between two checkpoints."""
    save: Callable[[Checkpoint], object] = lambda _checkpoint: None
    """Writes a checkpoint; called every checkpoint_every epochs, at the end, and when interrupted."""
    on_epoch: Callable[[EpochMetrics], object] = lambda _metrics: None
    """Called with every finished epoch's figures; no signal breaks in on it."""
    between_epochs: Callable[[int], object] = lambda _epoch: None
    """Called with the number of finished epochs, for what may take its time."""
    peak_memory_mib: Callable[[], int] = lambda: 0
    """For the figures."""


class Training:
    """Goes through the epochs of a plan, from any step on.

    Args:
        parts: see Parts.
        plan: see TrainingPlan.
        fingerprint: stands in every checkpoint.
        group: the processes that share every batch; one process is a group too.
        interrupt: a signal ends the training with a checkpoint.
        gradient_step: does forward and backward; by default operator by operator.
        hooks: see Hooks.
    """

    def __init__(
        self,
        parts: Parts,
        plan: TrainingPlan,
        *,
        fingerprint: str = "",
        group: ProcessGroup,
        interrupt: Interrupt,
        gradient_step: GradientStep | None = None,
        hooks: Hooks = Hooks(),
    ) -> None:
        self._parts = parts
        self._plan = plan
        self.fingerprint = fingerprint
        self._group = group
        self._interrupt = interrupt
        self._hooks = hooks
        self._gradient_step = gradient_step or parts.eager_step()
        self._micro_batch = plan.batch_size  # images that go through the UNet at once, at most
        self.epoch = 0
        """Epochs that are complete."""
        self.step = 0
        """Optimizer steps that are done, over all epochs."""
        self.loss = 0.0
        """Mean loss of the last complete epoch."""
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []

    def train(self) -> None:
        """Train to the plan's last epoch.

        Raises:
            StopRequested: a signal came; the checkpoint is saved.
            InterruptedTrainingError: another device's process is gone; the checkpoint is saved.
            TrainingError: a loss or gradient is not a number; nothing of that epoch is saved.
            OutOfMemoryError: even one image at a time does not fit.
        """
        try:
            draws = self._draw(self.epoch + 1)
            while self.epoch < self._plan.epochs:
                started, done_before = time.monotonic(), len(self._losses)
                for batch in draws.batches[done_before:]:
                    loss = self._gradients(batch, draws)
                    # A signal may raise anywhere but here: half a step can be thrown away, not half taken.
                    with self._interrupt.shielded():
                        self._group.add_up(self._parts.adapter.gradients, loss)
                        self._norms.append(self._parts.optimizer.step())
                        self._losses.append(loss)
                        self.step += 1
                sizes = [len(batch) for batch in draws.batches]
                draws = self._draw(self.epoch + 2)  # while the device still computes
                with self._interrupt.shielded():
                    self._finish_epoch(sizes, done_before, started)
                self._hooks.between_epochs(self.epoch)
        except (StopRequested, InterruptedTrainingError):
            with self._interrupt.shielded():
                if self.step:
                    self._check_numbers()
                    self._hooks.save(self._checkpoint())
            raise
        self._gradient_step = self._parts.eager_step()  # what follows may need a recording's memory

    def _gradients(self, batch: list[int], draws: EpochDraws) -> Tensor:
        """Add the gradients of this process's part of the batch's mean loss; return that part of the loss."""
        unet = self._parts.unet
        try:
            return self._forward_backward(batch, draws)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if unet.is_gradient_checkpointing:
                raise OutOfMemoryError(
                    "The GPU's memory does not hold even one image at a time with checkpointing; use "
                    "a GPU with at least 6 GB that nothing else uses, or a smaller RESOLUTION."
                ) from error
        self._gradient_step = self._parts.eager_step()  # a recording would hold its memory
        self._parts.adapter.gradients.zero_()
        images = min(self._micro_batch, len(self._group.share(batch)))
        if images > 1:
            self._micro_batch = -(-images // 2)
            logger.warning(
                "The device is out of memory: going on with at most %d of a batch's images at a time.",
                self._micro_batch,
            )
        else:
            logger.warning("The device is out of memory: going on with gradient checkpointing.")
            unet.enable_gradient_checkpointing()
            unet.train()  # diffusers checkpoints in this mode only; SD 1.5 has no dropout
        torch.cuda.empty_cache()
        return self._gradients(batch, draws)

    def _forward_backward(self, batch: list[int], draws: EpochDraws) -> Tensor:
        total = torch.zeros((), device=draws.timesteps.device)
        for images in self._micro_batches(batch):
            latents, texts = self._parts.examples.batch(images, draws)
            noise = torch.stack([draws.noise[image] for image in images])
            timesteps = torch.cat([draws.timesteps[image : image + 1] for image in images])
            total += self._gradient_step(MicroBatch(latents, texts, noise, timesteps), len(batch))
        return total

    def _micro_batches(self, batch: list[int]) -> Iterator[list[int]]:
        mine = self._group.share(batch)
        size = self._micro_batch
        return (mine[start : start + size] for start in range(0, len(mine), size))

    def _draw(self, epoch: int) -> EpochDraws:
        """Draw an epoch's random choices and put them on the device in one copy for each kind."""
        plan, examples = self._plan, self._parts.examples
        draws = draw_epoch(
            plan.seed,
            epoch,
            examples.shapes,
            batch_size=plan.batch_size,
            timesteps=self._parts.objective.signal.numel(),
            random_flip=plan.random_flip,
            caption_dropout=plan.caption_dropout,
        )
        offsets = plan.noise_offset * draws.offsets[:, :, None, None]
        noise = [one + offset for one, offset in zip(draws.noise, offsets, strict=True)]
        device = self._parts.adapter.weights.device
        return replace(
            draws,
            timesteps=_to_device([draws.timesteps], device)[0],
            noise=_to_device(noise, device),
            posterior=_to_device(draws.posterior, device),
        )

    def _finish_epoch(self, sizes: list[int], done_before: int, started: float) -> None:
        """Report the epoch of batches of these sizes, of which so many were done before this process."""
        losses, norms = self._check_numbers()
        self.epoch += 1
        images = torch.tensor(sizes)
        self.loss = (losses * images).sum().item() / sum(sizes)
        self._losses, self._norms = [], []
        optimizer, finite = self._parts.optimizer, norms[torch.isfinite(norms)]
        self._hooks.on_epoch(
            EpochMetrics(
                epoch=self.epoch,
                step=self.step,
                loss=self.loss,
                grad_norm=finite.mean().item() if finite.numel() else 0.0,
                learning_rate=optimizer.learning_rate,
                skipped_steps=self.step - optimizer.steps_taken,
                images_per_second=sum(sizes[done_before:]) / max(1e-9, time.monotonic() - started),
                memory_mib=self._hooks.peak_memory_mib(),
            )
        )
        # After the figures: a checkpoint whose epoch has no figures yet would leave a gap in them for ever.
        if self.epoch % self._hooks.checkpoint_every == 0 or self.epoch == self._plan.epochs:
            self._hooks.save(self._checkpoint())

    def _check_numbers(self) -> tuple[Tensor, Tensor]:
        """Return the losses and norms of this epoch's steps, [steps] each; only here the device is awaited.

        Raises:
            TrainingError: one is not a number, and not because the fp16 scaler tried too large a scale.
        """
        losses, norms = _stack(self._losses), _stack(self._norms)
        # A norm that overflowed at a larger scale was skipped, and the scale made smaller.
        bad_norms = ~torch.isfinite(norms) & (self._parts.optimizer.loss_scale <= 1)
        bad = (~torch.isfinite(losses) | bad_norms).nonzero()
        if bad.numel():
            index = int(bad[0])
            name, values = ("gradient", norms) if math.isfinite(losses[index]) else ("loss", losses)
            raise TrainingError(
                f"The {name} is {values[index].item()} at step {self.step - len(losses) + index + 1}; try a "
                "lower learning_rate or LORA_ALPHA, or MIXED_PRECISION=no."
            )
        return losses, norms

    def _checkpoint(self) -> Checkpoint:
        optimizer = self._parts.optimizer
        tensors = {"losses": _stack(self._losses), "norms": _stack(self._norms), **optimizer.tensors()}
        return Checkpoint(
            self.fingerprint, self.epoch, self.step, self.loss, optimizer.scaler_state(), tensors
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from checkpoint instead of the beginning."""
        self.epoch, self.step, self.loss = checkpoint.epoch, checkpoint.step, checkpoint.loss
        device = self._parts.adapter.weights.device
        self._losses = list(checkpoint.tensors["losses"].to(device))
        self._norms = list(checkpoint.tensors["norms"].to(device))
        self._parts.optimizer.restore(checkpoint.tensors, checkpoint.scaler)


def _stack(scalars: list[Tensor]) -> Tensor:
    return torch.stack(scalars).cpu() if scalars else torch.zeros(0)


def _to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copy to the device in one transfer that the CPU does not wait for."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
