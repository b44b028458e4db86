"""The benchmark counts what it says, and a step asks for nothing that it should not."""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

import bench_reference
import bench_side
import trainer.__main__ as trainer_main
from bench import batch_sizes
from bench_bounds import estimated_ratio, fp16_peak_tflops, tflop_per_image
from bench_operators import OperatorCount, Operators
from bench_plan import BenchPlan
from bench_report import report_lines
from bench_sweep import best_point, pictures_and_epochs, sweep
from bench_whole import time_whole_training
from sample_pictures import draw_pictures
from tests.trainer.rig import Rig
from trainer.errors import OutOfMemoryError


def operators_of_a_step(rig: Rig) -> Operators:
    """Count what the third step of an epoch asks for."""
    step, steps = rig.parts.optimizer.step, 0
    counter = OperatorCount()
    found: list[Operators] = []

    def counted() -> torch.Tensor:
        nonlocal steps
        norm = step()
        steps += 1
        if steps == 2:
            counter.start()
        if steps == 3:
            found.append(counter.stop())
        return norm

    rig.parts.optimizer.step = counted  # type: ignore[method-assign]  # to see between two steps
    rig.training().train()
    return found[0]


def test_operators_that_compute_are_counted_and_views_are_not() -> None:
    counter = OperatorCount()
    x = torch.ones(4, 4)
    counter.start()
    y = x.t().reshape(2, 8).transpose(0, 1)[1:]
    y = y + y
    torch.nn.functional.linear(x, x)  # a composite: one matrix product does its work
    operators = counter.stop()
    # The reshape of a transposed tensor copies.
    assert operators.kernels == {"copy_": 1, "add": 1, "mm": 1}
    assert operators.waits == 0


def test_every_way_to_wait_for_the_device_is_counted() -> None:
    counter = OperatorCount()
    x = torch.ones(3)
    counter.start()
    _ = x.sum().item(), float(x[0]), bool(x.any()), x.tolist()
    assert counter.stop().waits == 3  # tolist() of a CPU's tensor reads its memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_step_never_waits_for_the_device(tiny_base: Path, dtype: torch.dtype) -> None:
    """One item() a step, for a progress bar or a norm, costs a GPU its queue."""
    assert operators_of_a_step(Rig(tiny_base, dtype, num_epochs=1)).waits == 0


def test_step_asks_for_few_operators_beyond_the_adapters_own(tiny_base: Path) -> None:
    """peft's own forward casts, and an optimizer over 256 tensors, asked for five thousand more."""
    operators = operators_of_a_step(Rig(tiny_base, torch.float16, num_epochs=1))
    assert operators.kernels.total() < 3500
    assert operators.kernels["_fused_adamw_"] == 1
    assert operators.kernels["linalg_vector_norm"] <= 1


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 30), (4, 9), (16, 3)])
def test_plan_counts_the_last_batch_that_is_not_full(batch_size: int, steps: int) -> None:
    plan = BenchPlan("base", "pictures", 10, 3, batch_size, 512, "no")
    assert plan.images == 30
    assert plan.steps == steps


@pytest.mark.parametrize("batch_size", [1, 2, 4, 7, 8, 16, 32, 50, 100])
@pytest.mark.parametrize("steps", [2, 10, 300, 2000])
def test_every_point_of_the_sweep_has_whole_batches_and_is_a_valid_request(
    batch_size: int, steps: int
) -> None:
    """A smaller last batch would be counted as a step like the others."""
    pictures, epochs = pictures_and_epochs(batch_size, steps)
    assert pictures % batch_size == 0
    assert pictures <= 100
    assert epochs <= 500
    done = BenchPlan("base", "pictures", pictures, epochs, batch_size, 512, "no").steps
    assert done >= min(steps, 500)
    assert done < steps + 10


@pytest.mark.parametrize(("text", "sizes"), [("1,2,16", [1, 2, 16]), ("8", [8]), ("4,1,4", [1, 4])])
def test_batch_sizes_are_listed_with_commas(text: str, sizes: list[int]) -> None:
    assert batch_sizes(text) == sizes


@pytest.mark.parametrize("text", ["0,1", "101", "-1"])
def test_batch_size_that_no_request_may_have_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        batch_sizes(text)


def plans(*sizes: int) -> list[BenchPlan]:
    return [BenchPlan("base", "pictures", 10 * size, 1, size, 512, "fp16") for size in sizes]


def figures(rate: float) -> dict[str, Any]:
    return {
        "images_per_second": rate / 2,
        "steady_images_per_second": rate,
        "first_step_seconds": 9.0,
        "cpu_seconds_per_image": 0.1,
        "host_work_ms_per_image": 14.0,
        "first_step_cpu_seconds": 8.0,
        "peak_memory_mib": 4000.0,
        "start": {"imported": 3.0},
    }


def test_side_that_is_out_of_memory_ends_its_own_sweep_only() -> None:
    asked: list[tuple[str, int]] = []

    def measure(side: str, plan: BenchPlan) -> dict[str, Any]:
        asked.append((side, plan.batch_size))
        if side == "reference" and plan.batch_size >= 2:
            return {"out_of_memory": True}
        return figures(plan.batch_size if side == "trainer" else 0.5)

    points = sweep(plans(1, 2, 4), 2, measure)
    assert asked.count(("reference", 2)) == 1
    assert ("reference", 4) not in asked
    assert asked.count(("trainer", 4)) == 2
    ours, theirs = best_point(points, "trainer"), best_point(points, "reference")
    assert ours
    assert ours["batch_size"] == 4
    assert theirs
    assert theirs["batch_size"] == 1


def test_best_batch_is_the_quickest_warm_one_and_each_round_can_give_the_best() -> None:
    rates = iter([3.0, 5.0, 2.0, 4.5])

    def measure(side: str, _plan: BenchPlan) -> dict[str, Any]:
        return figures(next(rates)) if side == "trainer" else {"out_of_memory": True}

    points = sweep(plans(1, 2), 2, measure)
    assert [point["trainer"]["steady_images_per_second"] for point in points] == [5.0, 4.5]
    best = best_point(points, "trainer")
    assert best
    assert best["batch_size"] == 1
    assert best_point(points, "reference") is None


def test_report_shows_best_against_best_and_where_memory_ended() -> None:
    def measure(side: str, plan: BenchPlan) -> dict[str, Any]:
        if side == "reference" and plan.batch_size > 1:
            return {"out_of_memory": True}
        return figures(plan.batch_size * 100)

    best = {"images_per_second": 0.0, "part_of_fp16_peak": 0.25}
    counts = {"kernels_per_step": 3000, "host_syncs_per_step": 2, "operators": {"mm": 800}}
    report = {
        "device": "NVIDIA H100 80GB HBM3",
        "torch": "2.13.0",
        "base": "SD 1.5's size",
        "resolution": 512,
        "precision": "fp16",
        "rounds": 2,
        "points": sweep(plans(1, 2, 4), 1, measure),
        "best": {
            "trainer": {**best, "batch_size": 4, "images_per_second": 400.0},
            "reference": {**best, "batch_size": 1, "images_per_second": 100.0},
            "ratio": 4.0,
        },
        "trainer": {**counts, "step_over_own_unet": 1.01, "pairs": 9},
        "reference": counts,
        "whole": {"pictures": 10, "epochs": 100, "samples": True, "seconds": 41.26},
    }
    text = "\n".join(report_lines(report))
    assert "best against best: 400 at batch 4, 100 at batch 1, ratio 4.00" in text
    assert text.count("out of memory") == 1
    assert "10 pictures and 100 epochs, with sample pictures: 41.3 s from the process's start" in text
    assert "trainer: 750 operators an image" in text
    assert "reference: host work an image, ms: 14.00, at most 71 images a second" in text
    assert "trainer: 1.73 TFLOP an image, at most 572 images a second" in text


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", None),
        ("NVIDIA L40", None),
        ("Tesla T4", 65),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_is_that_of_the_very_device(name: str, peak: int | None) -> None:
    assert fp16_peak_tflops(name) == peak


def test_flops_are_stated_only_where_they_were_counted() -> None:
    assert tflop_per_image("trainer", full_size=True, resolution=512) == 1.73
    assert tflop_per_image("trainer", full_size=True, resolution=768) is None
    assert tflop_per_image("trainer", full_size=False, resolution=512) is None


def test_estimate_adds_the_pictures_to_the_reference_alone() -> None:
    """1.73 TFLOP at 173 TFLOP/s are 10 ms; 2.86 are 16.5 ms, and 13.5 ms of pictures make 30 of them."""
    assert estimated_ratio(1730, 0.1, 13.4682) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize("side", ["trainer", "reference"])
def test_host_works_on_pictures_in_the_steps_of_the_reference_alone(
    tiny_base: Path, tmp_path: Path, side: str
) -> None:
    draw_pictures(tmp_path / "pictures", 2)
    plan = BenchPlan(str(tiny_base), str(tmp_path / "pictures"), 2, 2, 1, 64, "no")
    result = subprocess.run(
        [sys.executable, bench_side.__file__, side, "time", json.dumps(asdict(plan))],
        env={**os.environ, "STARTED": repr(time.time())},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["host_work_ms_per_image"] > 0) is (side == "reference")
    assert found["steady_images_per_second"] > 0


def test_whole_training_is_timed_with_its_sample_pictures(tiny_base: Path, tmp_path: Path) -> None:
    """What a user waits for; without the pictures, or without the imports, it would look shorter."""
    draw_pictures(tmp_path / "pictures", 2)
    plan = BenchPlan(str(tiny_base), str(tmp_path / "pictures"), 2, 1, 1, 64, "no")
    began = time.monotonic()
    whole = time_whole_training(plan)
    assert whole.pop("seconds") == pytest.approx(time.monotonic() - began, rel=0.05)
    assert whole == {"pictures": 2, "epochs": 1, "samples": True}


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Restores what the trainer's side replaces in its own process."""
    for name in ("report", "quick_imports"):
        monkeypatch.setattr(trainer_main, name, getattr(trainer_main, name))
    names = ("BASE_MODEL", "MODELS_DIR", "RESOLUTION", "SAMPLE_PROMPTS", "MIXED_PRECISION", "DEVICES")
    for name in names:
        monkeypatch.setenv(name, "")
    return monkeypatch


def answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], side: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["bench_side.py", side, "time", json.dumps(asdict(plans(1)[0]))])
    bench_side.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_reference_that_is_out_of_memory_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench_reference, "train_reference", full)
    monkeypatch.setattr(bench_reference.Pictures, "__getitem__", bench_reference.Pictures.__getitem__)
    assert answer(monkeypatch, capsys, "reference") == {"out_of_memory": True}


def test_trainer_takes_one_device_and_its_full_memory_is_an_answer(
    replaced: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reference is one process: two GPUs on the other side would look like a trainer twice as fast."""
    devices: list[str] = []

    def full(_argv: list[str]) -> int:
        devices.append(os.environ["DEVICES"])
        code: int = getattr(trainer_main, "report")(OutOfMemoryError("the memory is full"))  # noqa: B009
        return code

    replaced.setattr(trainer_main, "main", full)
    assert answer(replaced, capsys, "trainer") == {"out_of_memory": True}
    assert devices == ["1"]
