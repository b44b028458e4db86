"""What bounds a step of each side of the benchmark on a GPU, at SD 1.5's size, without a GPU.

    PYTHONPATH=trainer_image python -m tests.trainer.bench_roofline [--batch-sizes N,N,...]

A kernel takes at least as long as its arithmetic at the GPU's peak, and as its operands' way through the
GPU's memory; the longer of both is added up here over all operators. No kernel reaches either, and at small
batches launches take longer than both; what the ratio shows is how much more the plain loop asks for. Its
reading of pictures, for which the GPU waits, comes on top. Of its operators some 500, which clip gradients,
are a few kernels on a GPU. Peaks are those of an H100 SXM in NVIDIA's data sheet.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench_reference import add_plain_lora, plain_loss, plain_optimizer
from tests.trainer.bench_memory import full_text_encoder, full_vae
from tests.trainer.fake_cuda import CUDA, fake_cuda
from tests.trainer.fake_training import SD15_UNET, SIDE, FakeTraining, frozen
from tests.trainer.operator_log import OperatorLog, is_kernel
from tiny_base import build_tiny_base


@dataclass
class Work:
    """What a step asks of a GPU."""

    peak_tflops: float
    tb_per_second: float
    operators: int = 0
    tflop: float = 0.0
    gigabytes: float = 0.0
    """Through the memory: what every operator reads and writes."""
    bound_ms: float = 0.0

    def add(self, flop: int, read_and_written: int) -> None:
        self.operators += 1
        self.tflop += flop / 1e12
        self.gigabytes += read_and_written / 1e9
        seconds = max(flop / 1e12 / self.peak_tflops, read_and_written / 1e12 / self.tb_per_second)
        self.bound_ms += 1000 * seconds

    def line(self) -> str:
        return (
            f"{self.operators:5} operators {self.tflop:6.2f} TFLOP {self.gigabytes:6.1f} GB "
            f"at least {self.bound_ms:6.1f} ms"
        )


class Roofline(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds every operator to work."""

    def __init__(self, work: Work) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._work = work

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        result = function(*arguments, **options)
        if is_kernel(function):
            count = flop_registry.get(function._overloadpacket)
            flop = count(*arguments, **options, out_val=result) if count else 0
            moved = sum(map(_bytes, _on_device((arguments, options, result))))
            self._work.add(flop, moved)
        return result


def _on_device(values: Any) -> Iterator[Tensor]:
    return (one for one in tree_leaves(values) if isinstance(one, Tensor) and one.device.type == "cuda")


def _bytes(tensor: Tensor) -> int:
    """Return the bytes that are touched: an expanded dimension is read once."""
    sizes = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(torch.Size(sizes).numel()) * tensor.element_size()


def work_of_the_trainer(base: Path, batch_size: int, work: Work) -> Work:
    """Return what the second step asks for, which is like all after it."""
    with fake_cuda() as mode, OperatorLog() as log:
        training = FakeTraining(mode, log, base, batch_size=batch_size)
        draws = training.draw()
        training.step(draws, 0)
        with Roofline(work):
            training.step(draws, 1)
    return work


def work_of_the_plain_loop(base: Path, batch_size: int, work: Work) -> Work:
    """Return what the second step asks for. Accelerate's part, autocast and the scaler, is done by hand."""
    with fake_cuda(), OperatorLog():
        config = {**UNet2DConditionModel.load_config(base, subfolder="unet"), **SD15_UNET}
        unet = frozen(UNet2DConditionModel, config, torch.float16)
        vae = full_vae(base, torch.float16)
        text_encoder = full_text_encoder(base, torch.float16)
        with CUDA:
            parameters = add_plain_lora(unet)
        unet.train()
        optimizer, scaler = plain_optimizer(parameters), torch.amp.GradScaler("cuda")
        scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
        pixels = torch.zeros(batch_size, 3, 8 * SIDE, 8 * SIDE, device=CUDA)
        tokens = torch.zeros(batch_size, 77, dtype=torch.int64, device=CUDA)

        def predict(*inputs: Any, **options: Any) -> Any:
            with torch.autocast("cuda", torch.float16):
                return unet(*inputs, **options)

        def step() -> None:
            loss = plain_loss(predict, vae, text_encoder, scheduler, pixels, tokens)
            loss.repeat(batch_size).mean().item()
            torch.autograd.backward(scaler.scale(loss))
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            loss.detach().item()

        step()
        with Roofline(work):
            step()
    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense, in half precision")
    parser.add_argument("--tb-per-second", type=float, default=3.35, help="of the GPU's memory")
    arguments = parser.parse_args()
    peaks = arguments.peak_tflops, arguments.tb_per_second
    with tempfile.TemporaryDirectory() as folder:
        base = build_tiny_base(Path(folder))
        for batch_size in map(int, arguments.batch_sizes.split(",")):
            ours = work_of_the_trainer(base, batch_size, Work(*peaks))
            theirs = work_of_the_plain_loop(base, batch_size, Work(*peaks))
            print(f"batch size {batch_size}")
            part = 1000 * ours.tflop / ours.bound_ms / arguments.peak_tflops
            print(f"  trainer    {ours.line()}, {part:.0%} of the peak")
            print(f"  plain loop {theirs.line()}")
            print(f"  {theirs.bound_ms / ours.bound_ms:.2f} times, and the reading of pictures")


if __name__ == "__main__":
    main()
