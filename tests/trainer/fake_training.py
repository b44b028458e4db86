"""A training of SD 1.5 on fake CUDA (see fake_cuda.py): what its steps ask for, and the memory they take."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from job_contract.request import TrainingRequest
from tests.trainer.fake_cuda import CUDA, fake_cuda
from tests.trainer.operator_log import Operator, OperatorLog
from trainer.device import Device
from trainer.examples import Examples, Latents
from trainer.interrupt import Interrupt
from trainer.parts import put_together
from trainer.plan import make_plan
from trainer.processes import ProcessGroup
from trainer.randomness import EpochDraws, draw_epoch
from trainer.settings import TrainerSettings
from trainer.training import Training

IMAGES: Final = 32
SIDE: Final = 64
"""Of the latents of a picture of 512 x 512."""
TEXT_WIDTH: Final = 768
SD15_UNET: Final = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": 8,
    "cross_attention_dim": TEXT_WIDTH,
    "norm_num_groups": 32,
}
"""What a tiny base's configuration has smaller."""


@dataclass(frozen=True)
class RecordedStep:
    """The second step of a training, which is like all after it."""

    operators: list[Operator]
    peak_bytes: int
    bytes_before: int
    bytes_after: int
    loss_dtype: torch.dtype
    adapter_size: int
    """The adapter's weights."""


class FakeTraining:
    """A training of SD 1.5 on fake CUDA, put together as the product does it, but for the weights' files.

    Args:
        base: a tiny one, for all of the configurations that does not depend on the size.
    """

    def __init__(
        self,
        mode: FakeTensorMode,
        log: OperatorLog,
        base: Path,
        dtype: torch.dtype = torch.float16,
        *,
        batch_size: int = 1,
        checkpointing: bool = False,
    ) -> None:
        self.log = log
        self._mode = mode
        request = TrainingRequest(style_id=1, image_paths=["x"] * IMAGES, batch_size=batch_size)
        plan = make_plan(request, TrainerSettings())
        config = UNet2DConditionModel.load_config(base, subfolder="unet")
        self.unet = frozen(UNet2DConditionModel, {**config, **SD15_UNET}, dtype)
        if checkpointing:
            self.unet.enable_gradient_checkpointing()
            self.unet.train()

        def pair() -> tuple[Tensor, Tensor]:
            return torch.zeros(4, SIDE, SIDE, device=CUDA), torch.zeros(4, SIDE, SIDE, device=CUDA)

        texts = torch.zeros(3, 77, TEXT_WIDTH, device=CUDA)
        examples = Examples(
            [Latents(pair(), pair()) for _ in range(IMAGES)], texts, [0, 1] * (IMAGES // 2), ""
        )
        self.parts = put_together(plan, self.unet, examples, base, Device(CUDA, dtype, "fake", None))
        self._training = Training(
            self.parts,
            plan,
            group=ProcessGroup(),
            interrupt=Interrupt(),
        )

    def draw(self) -> EpochDraws:
        """Return an epoch's draws as the loop has them."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trainer.training.draw_epoch", self._draw_really)
            return self._training._draw(1)

    def _draw_really(self, *arguments: Any, **options: Any) -> EpochDraws:
        """Draw with values, for the order of the images is one, and make fake tensors of the tensors."""
        with unset_fake_temporarily():
            draws = draw_epoch(*arguments, **options)
        fake = self._mode.from_tensor
        return replace(
            draws,
            timesteps=fake(draws.timesteps),
            offsets=fake(draws.offsets),
            noise=[fake(one) for one in draws.noise],
            posterior=[fake(one) for one in draws.posterior],
        )

    def step(self, draws: EpochDraws, number: int) -> Tensor:
        """Take the step of an epoch's batch number and return its loss."""
        loss = self._training._gradients(draws.batches[number], draws)
        self.parts.optimizer.step()
        return loss

    def take_steps(self) -> RecordedStep:
        """Take two steps as the loop does, and record the second."""
        log, draws = self.log, self.draw()
        for number in range(2):
            log.begin()
            before = log.bytes
            loss = self.step(draws, number)
        size = self.parts.adapter.weights.numel()
        return RecordedStep(log.operators, log.peak_bytes, before, log.bytes, loss.dtype, size)


def frozen(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    """Return a model on CUDA as trainer.base_model loads it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with CUDA:
            make = getattr(kind, "from_config", kind)  # diffusers' models and transformers'
            return make(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(before)


def record_step(
    base: Path,
    dtype: torch.dtype = torch.float16,
    *,
    batch_size: int = 1,
    checkpointing: bool = False,
    spoil: Callable[[Tensor], Tensor] | None = None,
) -> RecordedStep:
    """Record a step, in which spoil may replace the UNet's result."""
    with fake_cuda() as mode, OperatorLog() as log:
        training = FakeTraining(mode, log, base, dtype, batch_size=batch_size, checkpointing=checkpointing)
        if spoil:
            training.unet.register_forward_hook(lambda _module, _inputs, output: (spoil(output[0]),))
        return training.take_steps()


recorded_step = cache(record_step)
"""The same for tests that only look at it."""
