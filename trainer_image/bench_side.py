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
from typing import Any

from bench_plan import BenchPlan
from bench_watches import Clock, Counter, PictureWork, UnetSteps, now

Figures = dict[str, Any]
AfterStep = Callable[[], None]


class OutOfMemory(Exception):  # noqa: N818 (it is an answer)
    """This side does not fit into the device's memory."""


def main() -> None:
    plan = BenchPlan(**json.loads(sys.argv[3]))
    try:
        figures = {"time": _timed, "count": _counted, "unet": _beside_unet}[sys.argv[2]](sys.argv[1], plan)
    except OutOfMemory:
        figures = {"out_of_memory": True}
    print(json.dumps(figures))  # noqa: T201 (bench.py reads it)


def _timed(side: str, plan: BenchPlan) -> Figures:
    clock = Clock(plan.steps)
    work = PictureWork()
    marks = _run(side, plan, clock.step, work)
    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_reserved() / 2**20  # with a CUDA graph's pool
    started = float(os.environ["STARTED"])
    an_image = plan.steps / plan.images
    images, warm_images = (plan.steps - 1) / an_image, (plan.steps - clock.warm_step) / an_image
    return {
        "images_per_second": images / (clock.last[0] - clock.first[0]),
        "steady_images_per_second": warm_images / (clock.last[0] - clock.warm[0]),
        "first_step_seconds": clock.first[0] - started,
        "cpu_seconds_per_image": (clock.last[1] - clock.first[1]) / images,
        "host_work_ms_per_image": 1000 * work.seconds / plan.images,
        "first_step_cpu_seconds": clock.first[1],
        "peak_memory_mib": peak,
        "start": {name: moment - started for name, moment in marks.items()},
    }


def _counted(side: str, plan: BenchPlan) -> Figures:
    counter = Counter()
    _run(side, plan, counter.step, PictureWork())
    return counter.figures


def _beside_unet(_side: str, plan: BenchPlan) -> Figures:
    steps = UnetSteps()
    os.environ["CUDA_GRAPHS"] = "off"  # both are to be launched operator by operator
    _run_trainer(plan, steps.step, PictureWork(), after_imports=steps.watch)
    return steps.figures


def _run(side: str, plan: BenchPlan, after_step: AfterStep, work: PictureWork) -> dict[str, float]:
    """Train, and return the moments at which parts of the start were over.

    Raises:
        OutOfMemory: the device's memory is too small.
    """
    if side == "trainer":
        return _run_trainer(plan, after_step, work)
    import torch

    import bench_reference

    marks = {"imported": time.time()}
    work.watch(bench_reference.Pictures, "__getitem__")
    work.start()
    try:
        bench_reference.train_reference(
            Path(plan.base),
            Path(plan.pictures),
            epochs=plan.epochs,
            batch_size=plan.batch_size,
            resolution=plan.resolution,
            after_step=after_step,
            mixed_precision=plan.precision,
        )
    except torch.OutOfMemoryError as error:
        raise OutOfMemory from error
    return marks


def _run_trainer(
    plan: BenchPlan,
    after_step: AfterStep,
    work: PictureWork,
    after_imports: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    import trainer.__main__ as trainer
    from trainer.errors import OutOfMemoryError

    marks: dict[str, float] = {}
    outcomes: list[Any] = []
    report = trainer.report  # type: ignore[attr-defined]  # replaced below

    def see_and_report(outcome: Any) -> Any:
        outcomes.append(outcome)
        return report(outcome)

    trainer.report = see_and_report  # type: ignore[attr-defined]

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
        work.watch(sys.modules["trainer.images"], "load_picture")
        work.watch(sys.modules["trainer.pictures"], "fit_picture")
        _call_after("trainer.preparation", None, "encode_pictures", work.start)
        after_imports()

    trainer.quick_imports = imports_and_hooks  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory() as models:
        os.environ |= {
            "BASE_MODEL": plan.base,
            "MODELS_DIR": models,
            "RESOLUTION": str(plan.resolution),
            "SAMPLE_PROMPTS": "[]",
            "MIXED_PRECISION": plan.precision,
            "DEVICES": "1",  # as the reference
        }
        options = ["--epochs", str(plan.epochs), "--batch-size", str(plan.batch_size)]
        code = trainer.main(["--style-id", "1", "--images", plan.pictures, *options])
    if outcomes and isinstance(outcomes[-1], OutOfMemoryError):
        raise OutOfMemory from outcomes[-1]
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


if __name__ == "__main__":
    main()
