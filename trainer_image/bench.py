"""Measure this trainer beside a plain one: same base, same pictures, same steps, one after the other.

    python trainer_image/bench.py [--full-size] [--batch-sizes N,N,...] [--steps N] [--json FILE]

Each side is a process of its own, from its start to its last step; both take turns, and the best of their
rounds counts, because whatever else the machine does only ever makes them slower. Every batch size is a
point; a side that runs out of memory goes no further. Two more runs look inside: one counts the operators of
a step, in half precision on small pictures, which changes no count; one takes the time of the trainer's
steps beside that of its own UNet's forward and backward, adapter included, in turns.

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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from bench_bounds import fp16_peak_tflops, tflop_per_image
from bench_plan import BenchPlan
from bench_report import report_lines
from bench_sweep import SIDES, best_point, pictures_and_epochs, sweep
from bench_whole import time_whole_training
from job_contract.request import MAX_IMAGES

_OPERATORS_RESOLUTION: Final = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--full-size", action="store_true", help="a base of SD 1.5's size, random weights")
    parser.add_argument(
        "--batch-sizes",
        type=batch_sizes,
        metavar="N,N,...",
        help="by default 1,2,4,8,16,32 on CUDA, 1 on a CPU",
    )
    parser.add_argument(
        "--steps", type=int, help="optimizer steps of each point; by default 300 on CUDA, 10 on a CPU"
    )
    parser.add_argument(
        "--whole-epochs", type=int, help="of a whole training; by default 100 on CUDA, none on a CPU"
    )
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = _compare(arguments, Path(folder))
    print("\n".join(report_lines(report)))  # noqa: T201 (the command's answer)


def batch_sizes(text: str) -> list[int]:
    """Return the sizes that text lists, in order and each once."""
    sizes = sorted({int(size) for size in text.split(",")})
    if not 1 <= sizes[0] <= sizes[-1] <= MAX_IMAGES:
        raise argparse.ArgumentTypeError(f"a batch has 1 to {MAX_IMAGES} images")
    return sizes


def _compare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    from bench_base import build_base

    cuda = torch.cuda.is_available()
    # At least two steps: the first one's end is where the counting of images begins.
    steps = max(2, arguments.steps or (300 if cuda else 10))
    base = build_base(work / "base", full_size=arguments.full_size, half=cuda)
    plans = [
        _plan(work, base, size, steps, arguments.resolution, "fp16" if cuda else "no")
        for size in arguments.batch_sizes or ([1, 2, 4, 8, 16, 32] if cuda else [1])
    ]
    points = sweep(plans, arguments.rounds, lambda side, plan: _measure(side, "time", plan))
    report = {
        "device": _device_name(cuda=cuda),
        "torch": torch.__version__,
        "command": " ".join(["bench.py", *sys.argv[1:]]),
        "base": "SD 1.5's size" if arguments.full_size else "tiny",
        "resolution": arguments.resolution,
        "precision": plans[0].precision,
        "rounds": arguments.rounds,
        "points": points,
    }
    _write(report, arguments.json)  # what took long is safe, whatever becomes of the rest
    report["best"] = _best(report, full_size=arguments.full_size)

    tiny = build_base(work / "tiny", full_size=False, half=False)
    # The count is the same for any base, batch and resolution. Not every GPU has bf16, and no CPU fp16.
    counted = _plan(work, tiny, 1, 10, _OPERATORS_RESOLUTION, "fp16" if cuda else "bf16")
    for side in SIDES:
        report[side] = _measure(side, "count", counted)
    report["trainer"] |= _measure("trainer", "unet", plans[0])
    _write(report, arguments.json)
    epochs = (100 if cuda else 0) if arguments.whole_epochs is None else arguments.whole_epochs
    if epochs:
        ten = _plan(work, base, 1, 10, arguments.resolution, plans[0].precision)
        report["whole"] = time_whole_training(replace(ten, epochs=epochs))
        _write(report, arguments.json)
    return report


def _plan(work: Path, base: Path, batch_size: int, steps: int, resolution: int, precision: str) -> BenchPlan:
    from sample_pictures import draw_pictures

    count, epochs = pictures_and_epochs(batch_size, steps)
    pictures = work / f"pictures-{count}"
    if not pictures.exists():
        draw_pictures(pictures, count)
    return BenchPlan(str(base), str(pictures), count, epochs, batch_size, resolution, precision)


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


def _best(report: dict[str, Any], *, full_size: bool) -> dict[str, Any]:
    """Return each side's best batch size and warm rate there, and the ratio of the rates."""
    peak = fp16_peak_tflops(report["device"])
    best: dict[str, Any] = {}
    for side in SIDES:
        point = best_point(report["points"], side)
        if point is None:
            sys.exit(f"the memory does not hold even the smallest batch of the {side}")
        rate = point[side]["steady_images_per_second"]
        best[side] = {"batch_size": point["batch_size"], "images_per_second": rate}
        tflop = tflop_per_image(side, full_size=full_size, resolution=report["resolution"])
        if tflop:
            best[side]["tflop_per_second"] = rate * tflop
        if tflop and peak:
            best[side]["part_of_fp16_peak"] = rate * tflop / peak
    ours, theirs = (best[side]["images_per_second"] for side in SIDES)
    return {**best, "ratio": ours / theirs}


def _write(report: dict[str, Any], file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n")


def _device_name(*, cuda: bool) -> str:
    if cuda:
        import torch

        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU: {names[0] if names else platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
