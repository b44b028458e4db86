"""Make a tiny base model: the architecture of Stable Diffusion 1.5, 3,000 times smaller, random weights.

    python trainer_image/tiny_base.py FOLDER

The demo and the tests train on it where no hub can be reached. It has SD 1.5's block types, its 16
transformer blocks and the names of its 128 LoRA modules, an 8x VAE with 4 latent channels, and CLIP's
real tokenizer; `StableDiffusionPipeline.from_pretrained(FOLDER)` loads it. It draws nothing sensible.
"""

import gzip
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH: Final = 32
BEGIN_OF_TEXT: Final = "<|startoftext|>"
END_OF_TEXT: Final = "<|endoftext|>"
_VOCABULARY_SIZE: Final = 49408
_MERGES: Final = 49152 - 256 - 2  # all of CLIP's vocabulary but the bytes, twice, and the two special tokens


def build_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write the tiny base into folder in the diffusers layout and return folder.

    The same seed gives the same bytes on one machine. The caller's random state is left alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = StableDiffusionPipeline(
            vae=_vae(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(folder / "tokenizer"),
            unet=_unet(),
            scheduler=_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(16, 32, 32, 32),
        # diffusers' misnomer: the number of heads. SD 1.5 has 8; one on the costly 64x64 level is enough.
        attention_head_dim=(1, 2, 4, 4),
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=8,
    )


def _vae() -> AutoencoderKL:
    vae = AutoencoderKL(
        sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 16, 16),
        norm_num_groups=4,
        latent_channels=4,
        scaling_factor=0.18215,
    )
    with torch.no_grad():
        # Like a trained one: scaled latents of a picture have a variance near 1, their noise is small.
        mean, log_variance = vae.quant_conv.weight.chunk(2)
        mean.mul_(20.0)
        log_variance.zero_()
        vae.quant_conv.bias[len(mean) :] = -10.0
    return vae


def _text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=_VOCABULARY_SIZE,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=_VOCABULARY_SIZE - 2,
            eos_token_id=_VOCABULARY_SIZE - 1,
            pad_token_id=1,  # as in SD 1.5's configuration, where nothing reads it
        )
    )


def _scheduler() -> PNDMScheduler:
    """Return the scheduler with which SD 1.5 is published."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="epsilon",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """Write vocab.json and merges.txt as CLIP's tokenizer has them into folder and load them.

    The order of the vocabulary is that of CLIP: bytes, bytes that end a word, merges, special tokens
    (openai/CLIP d05afc4, clip/simple_tokenizer.py).
    """
    merges = _clip_merges()
    characters = list(_byte_characters())
    words = [*characters, *(character + "</w>" for character in characters)]
    words += ["".join(merge.split()) for merge in merges]
    words += [BEGIN_OF_TEXT, END_OF_TEXT]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _clip_merges() -> list[str]:
    """Return CLIP's byte-pair merges, best first, from the file that open_clip_torch carries.

    The file is read where it lies: importing open_clip would need torchvision.
    """
    name = "bpe_simple_vocab_16e6.txt.gz"
    for file in importlib.metadata.files("open_clip_torch") or []:
        if file.name == name:
            lines = gzip.decompress(Path(str(file.locate())).read_bytes()).decode().split("\n")
            return lines[1 : 1 + _MERGES]  # the first line is a comment
    raise FileNotFoundError(f"open_clip_torch is installed without {name}; install the locked version again")


def _byte_characters() -> list[str]:
    """Return the printable character that stands for each of the 256 bytes, in CLIP's order."""
    spans = (("!", "~"), ("¡", "¬"), ("®", "ÿ"))
    printable = [byte for first, last in spans for byte in range(ord(first), ord(last) + 1)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python trainer_image/tiny_base.py FOLDER")
    print(build_tiny_base(Path(sys.argv[1])))  # noqa: T201 (the command's answer)
