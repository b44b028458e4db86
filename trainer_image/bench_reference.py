"""The benchmark's other side: a LoRA loop in the plain manner of diffusers' train_text_to_image_lora.py.

Everything in every step: the picture is read and scaled, the VAE and the text encoder run, the loss is
gathered and logged. It trains the same layers on the same pictures with the same rank, rate and schedule.
The script itself also imports and starts `datasets` and torchvision; this one starts sooner without them.
"""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextModel, CLIPTokenizer


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Read, cut and mirrored on the main thread, where the script tokenizes the caption as well."""

    def __init__(self, folder: Path, tokenizer: Any, resolution: int) -> None:
        self._files = sorted(file for file in folder.iterdir() if file.suffix != ".txt")
        self._tokens = tokenizer(
            "",
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]
        self._resolution = resolution

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        picture = Image.open(self._files[number]).convert("RGB")
        picture = ImageOps.fit(picture, (self._resolution, self._resolution))
        if random.random() < 0.5:  # noqa: S311
            picture = ImageOps.mirror(picture)
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(self._resolution, self._resolution, 3).permute(2, 0, 1)
        return pixels.float() / 127.5 - 1, self._tokens


def add_plain_lora(unet: Any) -> list[Tensor]:
    """Attach peft's layers to the UNet as the script does, and return their weights in float32."""
    unet.add_adapter(LoraConfig(r=4, lora_alpha=32, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    if unet.dtype != torch.float32:
        cast_training_params(unet, dtype=torch.float32)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def plain_optimizer(parameters: list[Tensor]) -> torch.optim.AdamW:
    """foreach is what torch itself takes on CUDA; asked for, it makes the CPU's figures resemble those."""
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2, foreach=True)


def plain_loss(
    unet: Any, vae: Any, text_encoder: Any, noise_scheduler: Any, pixels: Tensor, tokens: Tensor
) -> Tensor:
    """Encode pixels [B, 3, H, W] and tokens [B, 77], and return the loss of the UNet's prediction."""
    latents = vae.encode(pixels.to(dtype=vae.dtype)).latent_dist.sample() * vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(1000, (latents.shape[0],), device=latents.device)
    noisy = noise_scheduler.add_noise(latents, noise, timesteps)
    texts = text_encoder(tokens, return_dict=False)[0]
    predicted = unet(noisy, timesteps, texts, return_dict=False)[0]
    return F.mse_loss(predicted.float(), noise.float(), reduction="mean")


def train_reference(
    base: Path,
    pictures: Path,
    *,
    epochs: int,
    batch_size: int,
    resolution: int,
    after_step: Callable[[], None],
    mixed_precision: str,
) -> None:
    """Train, and call after_step after every optimizer step."""
    accelerator = Accelerator(mixed_precision=mixed_precision)
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[mixed_precision]
    noise_scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder")
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae")
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    for model in (unet, vae, text_encoder):
        model.requires_grad_(False)
        model.to(accelerator.device, dtype=dtype)
    parameters = add_plain_lora(unet)
    optimizer = plain_optimizer(parameters)
    loader = DataLoader(Pictures(pictures, tokenizer, resolution), shuffle=True, batch_size=batch_size)
    steps = epochs * math.ceil(len(loader.dataset) / batch_size)  # type: ignore[arg-type]  # it has a length
    rates = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=0, num_training_steps=steps)
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    unet.train()
    for _ in range(epochs):
        for pixels, tokens in loader:
            with accelerator.accumulate(unet):
                loss = plain_loss(unet, vae, text_encoder, noise_scheduler, pixels, tokens)
                accelerator.gather(loss.repeat(batch_size)).mean().item()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
                loss.detach().item()  # the example shows it beside its progress bar
            after_step()
