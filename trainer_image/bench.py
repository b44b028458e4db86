"""Measure this trainer beside a plain one: same base, same pictures, same steps, one after the other.

    python trainer_image/bench.py [--full-size] [--steps N] [--batch-size N] [--json FILE]

Each side is a process of its own, from its start to its last step; both take turns, and the best of their
rounds counts, because whatever else the machine does only ever makes them slower. Two more runs look inside:
one counts the operators of a step, in half precision on small pictures, which changes no count; one takes
the time of the trainer's steps beside that of the bare UNet's forward and backward, in turns.

--full-size makes a base of SD 1.5's size with random weights. On a CPU a step of it takes most of a minute
and 8 GB: `--full-size --steps 2 --rounds 1`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from bench_plan import BenchPlan

STEP_TFLOP: Final = 1.73
"""A LoRA step of SD 1.5 at 512 x 512 and one image: forward, and backward without the base's weights."""
_DENSE_FP16_TFLOPS: Final = {"H100 PCIe": 756, "H100": 989, "H200": 989, "A100": 312, "L4": 121, "T4": 65}
"""By a part of the device's name, from NVIDIA's data sheets, without sparsity."""
_SIDES: Final = ("trainer", "reference")
_TIMED: Final = (
    "images_per_second",
    "first_step_seconds",
    "cpu_seconds_per_image",
    "first_step_cpu_seconds",
    "peak_memory_mib",
)
_MOST_PICTURES: Final = 10
_COUNTED_RESOLUTION: Final = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full-size", action="store_true", help="a base of SD 1.5's size, random weights")
    parser.add_argument("--steps", type=int, help="optimizer steps; by default 300 on CUDA, 10 on a CPU")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = _compare(arguments, Path(folder))
    _print(report)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


def _compare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    from bench_base import build_base
    from sample_pictures import draw_pictures

    cuda = torch.cuda.is_available()
    steps = arguments.steps or (300 if cuda else 10)
    # At least two steps: the first one's end is where the counting of images begins.
    count = min(_MOST_PICTURES, max(2, steps) * arguments.batch_size)
    plan = BenchPlan(
        base=str(build_base(work / "base", full_size=arguments.full_size, half=cuda)),
        pictures=str(work / "pictures"),
        picture_count=count,
        epochs=-(-steps * arguments.batch_size // count),
        batch_size=arguments.batch_size,
        resolution=arguments.resolution,
        precision="fp16" if cuda else "no",
    )
    draw_pictures(work / "pictures", count)
    # The count is the same for any base, batch and resolution.
    counted = BenchPlan(
        base=str(build_base(work / "tiny", full_size=False, half=False)),
        pictures=str(work / "counted"),
        picture_count=_MOST_PICTURES,
        epochs=1,
        batch_size=1,
        resolution=_COUNTED_RESOLUTION,
        precision="bf16",
    )
    draw_pictures(work / "counted", _MOST_PICTURES)

    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in _SIDES}
    for _ in range(arguments.rounds):
        for side in _SIDES:
            rounds[side].append(_measure(side, "time", plan))
    results = {side: _best(rounds[side]) | _measure(side, "count", counted) for side in _SIDES}
    results["trainer"] |= _measure("trainer", "bare", plan)
    device = _device_name(cuda=cuda)
    if arguments.full_size:
        for one in results.values():
            one["tflop_per_second"] = one["images_per_second"] * STEP_TFLOP
            peak = next((peak for name, peak in _DENSE_FP16_TFLOPS.items() if name in device), None)
            if peak:
                one["part_of_fp16_peak"] = one["tflop_per_second"] / peak
    return {
        "device": device,
        "torch": torch.__version__,
        "command": " ".join(["bench.py", *sys.argv[1:]]),
        "base": "SD 1.5's size" if arguments.full_size else "tiny",
        **{name: asdict(plan)[name] for name in ("epochs", "batch_size", "resolution", "precision")},
        "steps": plan.steps,
        "rounds": arguments.rounds,
        **results,
    }


def _measure(side: str, what: str, plan: BenchPlan) -> dict[str, Any]:
    """Run one side as a process and return its figures."""
    result = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("bench_side.py")),
            side,
            what,
            json.dumps(asdict(plan)),
        ],
        env={**os.environ, "STARTED": repr(time.time())},
        capture_output=True,
        text=True,
    )
    if result.returncode:
        sys.exit(f"{side} failed:\n{result.stderr}")
    figures: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return figures


def _best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the best figure of each kind, and the start of the round with the quickest one."""
    best = {
        name: (max if name == "images_per_second" else min)(one[name] for one in rounds) for name in _TIMED
    }
    quickest = min(rounds, key=lambda one: float(one["first_step_seconds"]))
    return best | {"start": quickest["start"]}


def _device_name(*, cuda: bool) -> str:
    if cuda:
        import torch

        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _print(report: dict[str, Any]) -> None:
    ours, theirs = report["trainer"], report["reference"]
    lines = [
        f"{report['device']}, torch {report['torch']}, base {report['base']}, {report['steps']} steps, "
        f"batch {report['batch_size']}",
        f"{'':22}{'trainer':>12}{'reference':>12}{'ratio':>8}",
    ]
    for name, value in ours.items():
        if isinstance(value, int | float) and name in theirs:
            ratio = f"{value / theirs[name]:8.2f}" if theirs[name] else ""
            lines.append(f"{name:22}{value:12.2f}{theirs[name]:12.2f}{ratio}")
    for side in _SIDES:
        start = ", ".join(f"{name} {moment:.2f} s" for name, moment in report[side]["start"].items())
        lines.append(f"start of the {side}: {start}, first step {report[side]['first_step_seconds']:.2f} s")
    lines.append(
        f"a step of the trainer costs {ours['step_over_bare_unet']:.3f} of the bare UNet's forward and "
        f"backward (median of {ours['pairs']})"
    )
    lines.append(f"{'operators of a step':30}{'trainer':>12}{'reference':>12}")
    for name in dict.fromkeys([*theirs["operators"], *ours["operators"]]):
        counts = [side["operators"].get(name, "-") for side in (ours, theirs)]
        lines.append(f"{name:30}{counts[0]:>12}{counts[1]:>12}")
    print("\n".join(lines))  # noqa: T201 (the command's answer)


if __name__ == "__main__":
    main()
