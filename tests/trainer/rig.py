"""A training without a run around it, for tests of the loop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from job_contract.request import TrainingRequest
from trainer.base_model import load_unet
from trainer.checkpoint import Checkpoint
from trainer.examples import Examples, Latents
from trainer.gradient_step import GradientStep
from trainer.interrupt import Interrupt
from trainer.lora import Adapter, attach_lora
from trainer.metrics import EpochMetrics
from trainer.objective import make_objective
from trainer.optimizer import AdapterOptimizer
from trainer.parts import Parts
from trainer.plan import TrainingPlan, make_plan
from trainer.processes import ProcessGroup
from trainer.settings import TrainerSettings
from trainer.training import Hooks, Training

IMAGES = 4


def randomize(adapter: Adapter, std: float) -> None:
    """Give the layers weights of which none is zero."""
    adapter.weights.normal_(std=std, generator=torch.Generator().manual_seed(0)).masked_fill_(
        adapter.unused, 0
    )


class Rig:
    """A training on the tiny UNet with latents and texts out of a generator."""

    def __init__(
        self, base: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **request: Any
    ) -> None:
        fields = {"style_id": 1, "image_paths": ["x"] * IMAGES, "num_epochs": 2, **request}
        settings = TrainerSettings(caption_dropout=0, weight_decay=0)
        self.plan: TrainingPlan = make_plan(TrainingRequest.model_validate(fields), settings)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        unet = load_unet(base, dtype, torch.device(device))
        adapter = attach_lora(unet, rank=4, alpha=32, seed=1)
        latents = [Latents((mean := normal(4, 8, 8), mean), (0 * mean, 0 * mean)) for _ in range(IMAGES)]
        examples = Examples(latents, normal(2, 77, 32), [0] * IMAGES, "")
        objective = make_objective(torch.linspace(0.999, 0.01, 1000), "epsilon", 5.0, torch.device(device))
        optimizer = AdapterOptimizer(adapter, [1e-3] * 99, weight_decay=0, max_grad_norm=1.0)
        self.parts = Parts(unet, adapter, optimizer, examples, objective)
        self.checkpoints: list[Checkpoint] = []
        self.epochs: list[EpochMetrics] = []

    def training(
        self, group: ProcessGroup | None = None, gradient_step: GradientStep | None = None
    ) -> Training:
        return Training(
            self.parts,
            self.plan,
            group=group or ProcessGroup(),
            interrupt=Interrupt(),
            gradient_step=gradient_step,
            hooks=Hooks(checkpoint_every=1, save=self.checkpoints.append, on_epoch=self.epochs.append),
        )

    @property
    def weights(self) -> Tensor:
        return self.parts.optimizer.master.detach()

    def break_forward(self, at_calls: set[int], break_it: Callable[[Any], Any]) -> None:
        """Let break_it replace the UNet's result at these calls, counted from 1."""
        calls = 0

        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            nonlocal calls
            calls += 1
            return break_it(output) if calls in at_calls else None

        self.parts.unet.register_forward_hook(hook)
