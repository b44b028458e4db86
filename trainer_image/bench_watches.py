"""What looks at the steps of a benchmark's side from inside: the time, the work on pictures, the operators.

Like that side itself, it imports torch only when that is there.
"""

import time
from statistics import median
from typing import Any, Final

_COUNTED_STEP: Final = 5
"""The operators of this step are counted: the first steps have things of their own to do."""

_WARM_STEP: Final = 20
"""By its end the allocator, cuDNN, the fp16 scaler and a CUDA graph have come to rest."""


class Clock:
    """Told of every step; only at the first, the first warm and the last one it waits for the device."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.warm_step = min(_WARM_STEP, steps // 2)
        self._done = 0
        self.first = self.warm = self.last = (0.0, 0.0)
        """The time, and the CPU time of this process: it tells more where others use the machine too."""

    def step(self) -> None:
        self._done += 1
        if self._done in (1, self.warm_step, self._steps):
            moment = now(), time.process_time()
            self.first = moment if self._done == 1 else self.first
            self.warm = moment if self._done == self.warm_step else self.warm
            self.last = moment


class PictureWork:
    """The host's work on pictures in the training loop, as the CPU time of the threads that do it.

    What is done once before the loop counts only if start comes before it.
    """

    def __init__(self) -> None:
        self._started = False
        self.seconds = 0.0

    def start(self) -> None:
        self._started = True

    def watch(self, owner: Any, name: str) -> None:
        """Take the time of owner's function of that name."""
        original = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.thread_time()
            result = original(*arguments, **options)
            if self._started:
                self.seconds += time.thread_time() - start
            return result

        setattr(owner, name, timed)


class Counter:
    """Counts the operators of one step."""

    def __init__(self) -> None:
        self._done = 0
        self.figures: dict[str, Any] = {}

    def step(self) -> None:
        from bench_operators import OperatorCount

        self._done += 1
        if self._done == _COUNTED_STEP - 1:
            self._count = OperatorCount()
            self._count.start()
        if self._done == _COUNTED_STEP:
            self.figures = self._count.stop().figures()


class UnetSteps:
    """After every step of the trainer, takes the time of its UNet's own forward and backward beside it.

    The adapter is in that UNet, and takes part in both.
    In turns in one process, and on a CPU in the process's own CPU time, whatever else the machine does.
    """

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._unet: list[float] = []
        self._since: float | None = None
        self._seen: tuple[Any, Any] | None = None

    def watch(self) -> None:
        """Remember the UNet and the micro-batch of every gradient step."""
        from trainer.gradient_step import EagerStep, MicroBatch

        original = EagerStep.__call__

        def call(step: EagerStep, batch: MicroBatch, divisor: int) -> Any:
            self._seen = (step.unet, batch)
            return original(step, batch, divisor)

        EagerStep.__call__ = call  # type: ignore[method-assign,assignment]  # to see what it works on

    def step(self) -> None:
        if self._since is not None:
            self._steps.append(_work_seconds() - self._since)
        start = _work_seconds()
        self._forward_backward()
        if self._since is not None:
            self._unet.append(_work_seconds() - start)
        self._since = _work_seconds()

    def _forward_backward(self) -> None:
        if self._seen is None:
            raise RuntimeError("no gradient step was seen")
        unet, batch = self._seen
        dtype = next(unet.parameters()).dtype
        predicted = unet(batch.latents.to(dtype), batch.timesteps, batch.texts.to(dtype), return_dict=False)[
            0
        ]
        predicted.float().square().mean().backward()
        unet.zero_grad()

    @property
    def figures(self) -> dict[str, Any]:
        ratios = [step / unet for step, unet in zip(self._steps, self._unet, strict=True)]
        return {"step_over_own_unet": median(ratios), "pairs": len(ratios)}


def now() -> float:
    """Return the time at which the device has done what was asked of it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def _work_seconds() -> float:
    import torch

    return now() if torch.cuda.is_available() else time.process_time()
