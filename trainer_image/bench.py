"""Measure this trainer beside a plain one: same base, same pictures, same steps, one after the other.

    python trainer_image/bench.py [--full-size] [--epochs N] [--batch-size N] [--output FILE]

Each side is a process of its own, from its start to its last step; both take turns, and the best of their
rounds counts, because whatever else the machine does only ever makes them slower. --full-size makes a base
of SD 1.5's size with random weights; on a CPU a step of it takes most of a minute.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

STEP_TFLOP: Final = 1.73
"""A LoRA step of SD 1.5 at 512 x 512 and one image: forward, and backward without the base's weights."""

_PICTURES: Final = 10
_COUNTED_STEP: Final = 5
"""Its kernels are counted, in half precision, in a run that is not timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--side", choices=["trainer", "reference"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--full-size", action="store_true", help="a base of SD 1.5's size, random weights")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    arguments = parser.parse_args()
    if arguments.side:
        _run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        report = _compare(arguments, Path(folder))
    _print(report)
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")


def _compare(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run both sides in turns; return what the best rounds show."""
    import torch

    from sample_pictures import draw_pictures

    draw_pictures(work / "pictures", _PICTURES)
    _build_base(work / "base", full_size=arguments.full_size)
    rounds: dict[str, list[dict[str, float]]] = {"trainer": [], "reference": []}
    for _ in range(arguments.rounds):
        for side, results in rounds.items():
            results.append(_measure(side, arguments, work))
    counts = {side: _measure(side, arguments, work, "--count") for side in rounds}
    best = {
        side: {
            "images_per_second": max(one["images_per_second"] for one in results),
            "first_step_seconds": min(one["first_step_seconds"] for one in results),
            "peak_memory_mib": min(one["peak_memory_mib"] for one in results),
            "kernels_per_step": counts[side]["kernels_per_step"],
        }
        for side, results in rounds.items()
    }
    if arguments.full_size:
        for one in best.values():
            one["tflop_per_second"] = one["images_per_second"] * STEP_TFLOP
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name()
        if cuda
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "base": "SD 1.5's size" if arguments.full_size else "tiny",
        **{name: getattr(arguments, name) for name in ("epochs", "batch_size", "resolution", "rounds")},
        **best,
    }


def _measure(side: str, arguments: argparse.Namespace, work: Path, *options: str) -> dict[str, float]:
    """Run one side as a process and return its figures."""
    command = [sys.executable, __file__, "--side", side, "--work", str(work), *options]
    for name in ("epochs", "batch_size", "resolution"):
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    result = subprocess.run(
        command, env={**os.environ, "STARTED": repr(time.time())}, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{side} failed:\n{result.stderr}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures


def _operator_count() -> Any:
    from bench_operators import OperatorCount  # it imports torch, which the timed runs do at their time

    return OperatorCount()


class _Clock:
    """Told of every step; only the first and the last one make it wait for the device."""

    def __init__(self, steps: int, *, count: bool) -> None:
        self._steps = steps
        self._operators = _operator_count() if count else None
        self.kernels_per_step = 0
        self._done = 0
        self.first = self.last = 0.0

    def step(self) -> None:
        self._done += 1
        if self._done == 1:
            self.first = self._now()
        if self._done == self._steps:
            self.last = self._now()
        if self._operators and self._done == _COUNTED_STEP - 1:
            self._operators.start()
        if self._operators and self._done == _COUNTED_STEP:
            self.kernels_per_step = self._operators.stop()

    def _now(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.time()


def _run_side(arguments: argparse.Namespace) -> None:
    """Train on one side in this process and print its figures as the last line."""
    steps = arguments.epochs * -(-_PICTURES // arguments.batch_size)
    clock = _Clock(steps, count=arguments.count)
    work: Path = arguments.work
    if arguments.side == "reference":
        from bench_reference import train_reference

        train_reference(
            work / "base",
            work / "pictures",
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            resolution=arguments.resolution,
            after_step=clock.step,
            mixed_precision=_precision(arguments),
        )
    else:
        _run_trainer(arguments, clock)

    import torch

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    images = _PICTURES * arguments.epochs * (steps - 1) / steps
    figures = {
        "images_per_second": images / (clock.last - clock.first),
        "first_step_seconds": clock.first - float(os.environ["STARTED"]),
        "peak_memory_mib": peak,
        "kernels_per_step": clock.kernels_per_step,
    }
    print(json.dumps(figures))  # noqa: T201 (the command's answer)


def _precision(arguments: argparse.Namespace) -> str:
    """Return the reference's precision: the trainer's own choice, or bf16 where kernels are counted."""
    import torch

    if arguments.count:
        return "bf16"
    return "fp16" if torch.cuda.is_available() else "no"


def _run_trainer(arguments: argparse.Namespace, clock: _Clock) -> None:
    from trainer.__main__ import main as train

    work: Path = arguments.work
    with tempfile.TemporaryDirectory(dir=work) as models:
        os.environ |= {
            "BASE_MODEL": str(work / "base"),
            "MODELS_DIR": models,
            "RESOLUTION": str(arguments.resolution),
            "SAMPLE_PROMPTS": "[]",
            "MIXED_PRECISION": "bf16" if arguments.count else "auto",
        }
        # Its first step must be seen from inside; this import is one that the trainer does anyway.
        from trainer.optimizer import AdapterOptimizer

        original = AdapterOptimizer.step

        def step(self: AdapterOptimizer) -> Any:
            norm = original(self)
            clock.step()
            return norm

        AdapterOptimizer.step = step  # type: ignore[method-assign]  # to measure it
        options = ["--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size)]
        code = train(["--style-id", "1", "--images", str(work / "pictures"), *options])
    if code:
        sys.exit(f"the trainer ended with {code}")


def _build_base(folder: Path, *, full_size: bool) -> None:
    from tiny_base import build_tiny_base

    build_tiny_base(folder)
    if not full_size:
        return
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    # The sizes of SD 1.5; all else is the tiny base's, which has SD 1.5's architecture.
    text = CLIPTextConfig(
        **{**json.loads((folder / "text_encoder/config.json").read_text()), "hidden_size": 768}
        | {
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
        }
    )
    unet = {**UNet2DConditionModel.load_config(folder, subfolder="unet"), "cross_attention_dim": 768}
    unet |= {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32}
    vae = {**AutoencoderKL.load_config(folder, subfolder="vae"), "norm_num_groups": 32}
    vae |= {"block_out_channels": (128, 256, 512, 512)}
    UNet2DConditionModel.from_config(unet).to(torch.float16).save_pretrained(folder / "unet", variant="fp16")
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    AutoencoderKL.from_config(vae).save_pretrained(folder / "vae")
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")


def _print(report: dict[str, Any]) -> None:
    ours, theirs = report["trainer"], report["reference"]
    lines = [
        f"{report['device']}, torch {report['torch']}, base {report['base']}, batch {report['batch_size']}"
    ]
    lines.append(f"{'':22}{'trainer':>12}{'reference':>12}{'ratio':>8}")
    for name in ours:
        ratio = ours[name] / theirs[name]
        lines.append(f"{name:22}{ours[name]:12.2f}{theirs[name]:12.2f}{ratio:8.2f}")
    print("\n".join(lines))  # noqa: T201 (the command's answer)


if __name__ == "__main__":
    main()
