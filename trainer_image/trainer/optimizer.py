"""AdamW over the adapter's float32 weights, with the fp16 scaler, the clipping and the learning rate.

Nothing here waits for the GPU: the rate is looked up on the device, by a count of the steps that were
really taken. A step that the scaler skips advances neither AdamW nor the schedule (accelerate #4242).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.lora import Adapter
from trainer.settings import LrSchedule


def learning_rates(peak: float, steps: int, *, warmup_fraction: float, schedule: LrSchedule) -> list[float]:
    """Return the learning rate of every step: a linear climb to peak, then half a cosine to 0, or peak."""
    warmup = math.ceil(warmup_fraction * steps)
    rates = [peak * (step + 1) / (warmup + 1) for step in range(warmup)]
    for step in range(steps - warmup):
        done = step / max(1, steps - warmup)
        rates.append(peak * (0.5 * (1 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0))
    return rates


class AdapterOptimizer:
    """Owns the float32 weights; writes them into the adapter's working copy after every step."""

    def __init__(
        self, adapter: Adapter, rates: list[float], *, weight_decay: float, max_grad_norm: float
    ) -> None:
        device = adapter.weights.device
        self._adapter = adapter
        self._max_grad_norm = max_grad_norm
        self._rates = torch.tensor(rates, dtype=torch.float32, device=device)
        self.master = nn.Parameter(adapter.weights.to(torch.float32, copy=True))
        """[P] float32: the weights that are trained, checkpointed and exported."""
        self._adamw = torch.optim.AdamW(
            [self.master], lr=torch.zeros((), device=device), weight_decay=weight_decay, fused=True
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=adapter.weights.dtype == torch.float16)
        # The scaler makes its factor at the first use; a process without images in a batch makes none.
        self._scaler.scale(torch.zeros((), device=device))
        self._taken = torch.zeros(1, dtype=torch.int64, device=device)

    def scale(self, loss: Tensor) -> Tensor:
        """Return loss times the scaler's factor, whose gradients are wanted; without fp16 the loss itself."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def step(self) -> Tensor:
        """Take a step along the adapter's gradients and zero them.

        Returns the gradient's norm before clipping, a scalar on the device; one that is not finite means
        that the scaler skipped the step.
        """
        self.master.grad = self._adapter.gradients.to(torch.float32, copy=True)
        self._adapter.gradients.zero_()
        self._scaler.unscale_(self._adamw)
        norm = nn.utils.clip_grad_norm_([self.master], self._max_grad_norm)
        self._adamw.param_groups[0]["lr"].copy_(self._rates.index_select(0, self._taken).squeeze(0))
        self._scaler.step(self._adamw)
        self._scaler.update()
        self._taken += torch.isfinite(norm)
        self._adapter.weights.copy_(self.master.detach())
        return norm

    @property
    def steps_taken(self) -> int:
        """Steps that changed the weights; waits for the device."""
        return int(self._taken.item())

    @property
    def learning_rate(self) -> float:
        """The rate of the last step that changed the weights; waits for the device."""
        return self._rates[max(0, self.steps_taken - 1)].item()

    @property
    def loss_scale(self) -> float:
        """The scaler's factor, 1 without fp16; waits for the device."""
        return float(self._scaler.get_scale())

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that a checkpoint needs and that is a tensor."""
        state = self._adamw.state[self.master] or {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(self.master),
            "exp_avg_sq": torch.zeros_like(self.master),
        }
        return {
            "master": self.master.detach(),
            "taken": self._taken,
            **{name: state[name] for name in sorted(state)},
        }

    def scaler_state(self) -> dict[str, Any]:
        """Return the scaler's factor and counters; empty without fp16."""
        return self._scaler.state_dict()

    def restore(self, tensors: dict[str, Tensor], scaler_state: dict[str, Any]) -> None:
        """Take over what tensors() and scaler_state() returned, here or on another device."""
        with torch.no_grad():
            self.master.copy_(tensors["master"])
            self._adapter.weights.copy_(self.master)
        self._taken.copy_(tensors["taken"])
        device = self.master.device
        self._adamw.state[self.master] = {
            name: tensors[name].to(device).clone() for name in ("step", "exp_avg", "exp_avg_sq")
        }
        if self._scaler.is_enabled() and scaler_state:
            self._scaler.load_state_dict(scaler_state)
