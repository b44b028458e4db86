"""What a training is made of, put together the same way in every process of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.base_model import load_noise_scheduler
from trainer.device import Device
from trainer.examples import Examples
from trainer.gradient_step import EagerStep
from trainer.lora import Adapter, attach_lora
from trainer.objective import Objective, make_objective
from trainer.optimizer import AdapterOptimizer, learning_rates
from trainer.plan import TrainingPlan
from trainer.randomness import steps_per_epoch


@dataclass(frozen=True)
class Parts:
    """All on one device."""

    unet: Any
    adapter: Adapter
    optimizer: AdapterOptimizer
    examples: Examples
    objective: Objective

    def eager_step(self) -> EagerStep:
        """Return forward and backward, operator by operator."""
        return EagerStep(self.unet, self.adapter, self.objective, self.optimizer)


def total_steps(plan: TrainingPlan, examples: Examples) -> int:
    """Return the optimizer steps of the whole training."""
    return plan.epochs * steps_per_epoch(examples.shapes, plan.batch_size)


def put_together(plan: TrainingPlan, unet: Any, examples: Examples, base: Path, device: Device) -> Parts:
    """Attach the adapter to the UNet on its device, and make optimizer and objective for it."""
    if device.is_cuda:
        unet.to(memory_format=torch.channels_last)  # what cuDNN's half-precision convolutions want
    adapter = attach_lora(unet, rank=plan.lora_rank, alpha=plan.lora_alpha, seed=plan.seed)
    rates = learning_rates(
        plan.learning_rate,
        total_steps(plan, examples),
        warmup_fraction=plan.warmup_fraction,
        schedule=plan.lr_schedule,
    )
    optimizer = AdapterOptimizer(
        adapter, rates, weight_decay=plan.weight_decay, max_grad_norm=plan.max_grad_norm
    )
    scheduler = load_noise_scheduler(base)
    objective = make_objective(
        scheduler.alphas_cumprod, scheduler.config.prediction_type, plan.snr_gamma, device.torch_device
    )
    return Parts(unet, adapter, optimizer, examples, objective)
