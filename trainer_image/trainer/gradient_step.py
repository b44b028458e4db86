"""Forward and backward of one micro-batch: the part of a step that the UNet computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from trainer.lora import Adapter
from trainer.objective import Objective
from trainer.optimizer import AdapterOptimizer


@dataclass(frozen=True)
class MicroBatch:
    """B images as the loop sees them, on the device."""

    latents: Tensor
    """[B, 4, h, w] float32."""
    texts: Tensor
    """[B, 77, width] float32."""
    noise: Tensor
    """[B, 4, h, w] float32."""
    timesteps: Tensor
    """[B] int64."""

    def tensors(self) -> tuple[Tensor, ...]:
        return self.latents, self.texts, self.noise, self.timesteps

    def clone(self) -> Self:
        return type(self)(*(tensor.clone() for tensor in self.tensors()))


GradientStep = Callable[[MicroBatch, int], Tensor]
"""Adds the gradients of (the sum of a micro-batch's losses / a divisor) to the adapter's, and returns that
quotient, a scalar on the device."""


class EagerStep:
    """The gradient step, operator by operator."""

    def __init__(
        self, unet: Any, adapter: Adapter, objective: Objective, optimizer: AdapterOptimizer
    ) -> None:
        self.unet = unet
        self._adapter = adapter
        self._objective = objective
        self._optimizer = optimizer

    def __call__(self, batch: MicroBatch, divisor: int) -> Tensor:
        objective, timesteps, dtype = self._objective, batch.timesteps, self._adapter.weights.dtype
        noisy = objective.add_noise(batch.latents, batch.noise, timesteps)
        predicted = self.unet(noisy.to(dtype), timesteps, batch.texts.to(dtype), return_dict=False)[0]
        target = objective.target(batch.latents, batch.noise, timesteps)
        loss = objective.losses(predicted, target, timesteps).sum() / divisor
        self._adapter.add_gradients(self._optimizer.scale(loss))
        return loss.detach()
