"""The GPU memory that a training of SD 1.5 takes, without a GPU.

    PYTHONPATH=trainer_image python -m tests.trainer.bench_memory

It is what the tensors hold at most, for 512 x 512 pictures in fp16. A GPU also holds CUDA's context, the
workspaces of cuDNN and cuBLAS and the gaps in its allocator's blocks; a CUDA graph, a step's memory again.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from tests.trainer.fake_cuda import CUDA, fake_cuda
from tests.trainer.fake_training import SIDE, TEXT_WIDTH, FakeTraining, frozen, record_step
from tests.trainer.operator_log import OperatorLog
from tiny_base import build_tiny_base
from trainer.base_model import load_tokenizer
from trainer.examples import encode_pictures, encode_texts
from trainer.samples import Sampler

MIB = 2**20


def bytes_of_the_encoding(base: Path) -> int:
    """Return the most that is held while the texts and a picture are encoded; the UNet is there already."""
    with fake_cuda() as mode, OperatorLog() as log:
        mode.allow_non_fake_inputs = True  # the picture and the tokens are real
        training = FakeTraining(mode, log, base)
        vae, text_encoder = full_vae(base, torch.float32), full_text_encoder(base, torch.float32)
        log.begin()
        encode_texts(
            text_encoder, load_tokenizer(base), ["a picture"] * len(training.parts.examples.latents), CUDA
        )
        picture = Image.new("RGB", (8 * SIDE, 8 * SIDE))
        encode_pictures(vae, [picture], flip=True, device=CUDA, check=lambda: None)
        return log.peak_bytes


def bytes_of_the_samples(base: Path) -> int:
    """Return the most that is held while sample pictures are drawn, from the training's second step on."""
    with fake_cuda() as mode, OperatorLog() as log, pytest.MonkeyPatch.context() as patch:
        training = FakeTraining(mode, log, base)
        training.take_steps()
        mode.allow_non_fake_inputs = True  # the noise is drawn on the CPU
        patch.setattr("trainer.samples.load_vae", lambda _base, _device: full_vae(base, torch.float32))
        texts = training.parts.examples.texts
        sampler = Sampler(
            training.unet,
            training.parts.adapter,
            base,
            texts[:2],
            texts[2:],
            steps=2,
            guidance=7.5,
            seed=0,
            resolution=8 * SIDE,
        )
        log.begin()
        with pytest.raises(RuntimeError, match="numpy"):  # a fake picture's pixels are nowhere
            sampler.draw(trained=True)
        return log.peak_bytes


def full_text_encoder(base: Path, dtype: torch.dtype) -> CLIPTextModel:
    """Return a text encoder of SD 1.5's size on fake CUDA."""
    config = CLIPTextConfig.from_pretrained(base, subfolder="text_encoder")
    size = {"hidden_size": TEXT_WIDTH, "intermediate_size": 4 * TEXT_WIDTH, "projection_dim": TEXT_WIDTH}
    config.update({**size, "num_hidden_layers": 12, "num_attention_heads": 12})
    return frozen(CLIPTextModel, config, dtype)


def full_vae(base: Path, dtype: torch.dtype) -> AutoencoderKL:
    """Return a VAE of SD 1.5's size on fake CUDA."""
    size = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
    return frozen(AutoencoderKL, {**AutoencoderKL.load_config(base, subfolder="vae"), **size}, dtype)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        base = build_tiny_base(Path(folder))
        print(f"encoding       {bytes_of_the_encoding(base) // MIB:6} MiB")
        print(f"samples        {bytes_of_the_samples(base) // MIB:6} MiB")
        for batch_size in (1, 2, 4, 8, 16):
            plain, lean = (
                record_step(base, batch_size=batch_size, checkpointing=checkpointing).peak_bytes // MIB
                for checkpointing in (False, True)
            )
            print(f"batch size {batch_size:2}  {plain:6} MiB, with gradient checkpointing {lean:6} MiB")


if __name__ == "__main__":
    main()
