"""The benchmark's base: the tiny one, or one of SD 1.5's size, with random weights both."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tiny_base import build_tiny_base


def build_base(folder: Path, *, full_size: bool, half: bool) -> Path:
    """Write the base into folder and return it; half adds the UNet in fp16, as the hub has it."""
    build_tiny_base(folder)
    if full_size:
        _enlarge(folder)
    if half:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float16)
        unet.save_pretrained(folder / "unet", variant="fp16")
    return folder


def _enlarge(folder: Path) -> None:
    """Replace the models by those of SD 1.5's sizes; all else is as in the tiny base."""
    text = json.loads((folder / "text_encoder/config.json").read_text())
    text |= {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
    text |= {"num_hidden_layers": 12, "num_attention_heads": 12}
    unet = {**UNet2DConditionModel.load_config(folder, subfolder="unet"), "cross_attention_dim": 768}
    unet |= {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32}
    vae = {**AutoencoderKL.load_config(folder, subfolder="vae"), "norm_num_groups": 32}
    vae |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    CLIPTextModel(CLIPTextConfig(**text)).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel.from_config(unet).save_pretrained(folder / "unet")
    AutoencoderKL.from_config(vae).save_pretrained(folder / "vae")
