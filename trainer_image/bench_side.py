"""One side of the benchmark, in the process that is measured from its start; nothing is imported before its
time. bench.py starts it."""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench_plan import BenchPlan

_COUNTED_STEP: Final = 5
"""The operators of this step are counted: the first steps have things of their own to do."""

Figures = dict[str, Any]
AfterStep = Callable[[], None]


class _Clock:
    """Told of every step; only at the first and the last one it waits for the device."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._done = 0
        self.first = self.last = (0.0, 0.0)
        """The time, and the CPU time of this process: it tells more where others use the machine too."""

    def step(self) -> None:
        self._done += 1
        if self._done == 1:
            self.first = now(), time.process_time()
        if self._done == self._steps:
            self.last = now(), time.process_time()


class _Counter:
    """Counts the operators of one step."""

    def __init__(self) -> None:
        self._done = 0
        self.figures: Figures = {}

    def step(self) -> None:
        from bench_operators import OperatorCount

        self._done += 1
        if self._done == _COUNTED_STEP - 1:
            self._count = OperatorCount()
            self._count.start()
        if self._done == _COUNTED_STEP:
            self.figures = self._count.stop().figures()


class _BareSteps:
    """After every step of the trainer, takes the time of the UNet's bare forward and backward beside it.

    In turns in one process, and on a CPU in the process's own CPU time, whatever else the machine does.
    """

    def __init__(self) -> None:
        self._steps: list[float] = []
        self._bare: list[float] = []
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
            self._bare.append(_work_seconds() - start)
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
    def figures(self) -> Figures:
        ratios = [step / bare for step, bare in zip(self._steps, self._bare, strict=True)]
        return {"step_over_bare_unet": median(ratios), "pairs": len(ratios)}


def main() -> None:
    plan = BenchPlan(**json.loads(sys.argv[3]))
    figures = {"time": _timed, "count": _counted, "bare": _beside_bare}[sys.argv[2]](sys.argv[1], plan)
    print(json.dumps(figures))  # noqa: T201 (bench.py reads it)


def _timed(side: str, plan: BenchPlan) -> Figures:
    clock = _Clock(plan.steps)
    marks = _run(side, plan, clock.step)
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    started = float(os.environ["STARTED"])
    images = plan.images * (plan.steps - 1) / plan.steps
    return {
        "images_per_second": images / (clock.last[0] - clock.first[0]),
        "first_step_seconds": clock.first[0] - started,
        "cpu_seconds_per_image": (clock.last[1] - clock.first[1]) / images,
        "first_step_cpu_seconds": clock.first[1],
        "peak_memory_mib": peak,
        "start": {name: moment - started for name, moment in marks.items()},
    }


def _counted(side: str, plan: BenchPlan) -> Figures:
    counter = _Counter()
    _run(side, plan, counter.step)
    return counter.figures


def _beside_bare(_side: str, plan: BenchPlan) -> Figures:
    bare = _BareSteps()
    _run_trainer(plan, bare.step, after_imports=bare.watch)
    return bare.figures


def _run(side: str, plan: BenchPlan, after_step: AfterStep) -> dict[str, float]:
    """Train, and return the moments at which parts of the start were over."""
    if side == "trainer":
        return _run_trainer(plan, after_step)
    from bench_reference import train_reference

    marks = {"imported": time.time()}
    train_reference(
        Path(plan.base),
        Path(plan.pictures),
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        resolution=plan.resolution,
        after_step=after_step,
        mixed_precision=plan.precision,
    )
    return marks


def _run_trainer(
    plan: BenchPlan, after_step: AfterStep, after_imports: Callable[[], None] = lambda: None
) -> dict[str, float]:
    import trainer.__main__ as trainer

    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks[name] = now()

    quick_imports = trainer.quick_imports  # type: ignore[attr-defined]  # replaced below

    @contextmanager
    def imports_and_hooks() -> Iterator[None]:
        """See the steps from inside, without an import before the trainer's own."""
        with quick_imports():
            yield
        mark("imported")
        _call_after("trainer.optimizer", "AdapterOptimizer", "step", after_step)
        _call_after("trainer.preparation", None, "load_tokenizer", partial(mark, "loaded"))
        _call_after("trainer.preparation", None, "encode_pictures", partial(mark, "encoded"))
        after_imports()

    trainer.quick_imports = imports_and_hooks  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as models:
        os.environ |= {
            "BASE_MODEL": plan.base,
            "MODELS_DIR": models,
            "RESOLUTION": str(plan.resolution),
            "SAMPLE_PROMPTS": "[]",
            "MIXED_PRECISION": plan.precision,
        }
        options = ["--epochs", str(plan.epochs), "--batch-size", str(plan.batch_size)]
        code = trainer.main(["--style-id", "1", "--images", plan.pictures, *options])
    if code:
        sys.exit(f"the trainer ended with {code}")
    return marks


def _call_after(module: str, kind: str | None, name: str, hook: Callable[[], None]) -> None:
    owner = sys.modules[module]
    if kind:
        owner = getattr(owner, kind)
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        hook()
        return result

    setattr(owner, name, wrapped)


def now() -> float:
    """Return the time at which the device has done what was asked of it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.time()


def _work_seconds() -> float:
    import torch

    return now() if torch.cuda.is_available() else time.process_time()


if __name__ == "__main__":
    main()
