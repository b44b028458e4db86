"""The pictures and captions as the UNet sees them, encoded once before the first step.

A VAE encoding costs two thirds of a training step, and the text encoder's result never changes: neither
has a place in the loop. Both models leave memory when this is done.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from trainer.errors import TrainingError
from trainer.randomness import EpochDraws, Shape


@dataclass(frozen=True)
class Latents:
    """The VAE's distribution of one picture, plain and mirrored; each [4, h, w] float32, scaled."""

    mean: tuple[Tensor, Tensor]
    deviation: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Examples:
    """All that the loop trains on, on the device."""

    latents: list[Latents]
    texts: Tensor
    """[texts, 77, width]: the encodings of the different captions, and of no caption last."""
    caption_of: list[int]
    """By image, the number of its caption in texts."""
    fingerprint: str
    """Of the pictures and captions: other pictures under the same names are another training."""

    @property
    def shapes(self) -> list[Shape]:
        return [
            (channels, height, width)
            for channels, height, width in (one.mean[0].shape for one in self.latents)
        ]

    def batch(self, images: Sequence[int], draws: EpochDraws) -> tuple[Tensor, Tensor]:
        """Return the latents [B, 4, h, w] and the texts [B, 77, width] of these images in this epoch."""
        latents, texts = [], []
        for image in images:
            one, side = self.latents[image], int(draws.flipped[image])
            latents.append(torch.addcmul(one.mean[side], one.deviation[side], draws.posterior[image]))
            texts.append(self.texts[-1 if draws.captionless[image] else self.caption_of[image]])
        return torch.stack(latents), torch.stack(texts)


def encode_pictures(
    vae: nn.Module,
    pictures: Sequence[Image.Image],
    *,
    flip: bool,
    device: torch.device,
    check: Callable[[], None],
) -> list[Latents]:
    """Return each picture's latents; without flip the mirrored ones are the plain ones.

    Args:
        check: called between pictures, to stop in time.

    Raises:
        TrainingError: the VAE's result is not a number.
    """
    encoded = []
    for number, picture in enumerate(pictures, start=1):
        check()
        plain = _encode(vae, picture, number, device)
        mirrored = _encode(vae, ImageOps.mirror(picture), number, device) if flip else plain
        encoded.append(Latents((plain[0], mirrored[0]), (plain[1], mirrored[1])))
    return encoded


@torch.no_grad()
def _encode(vae: Any, picture: Image.Image, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of picture's latents, each [4, h, w], times the VAE's scaling factor."""
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.view(1, picture.height, picture.width, 3).permute(0, 3, 1, 2).to(device)
    distribution = vae.encode(pixels.float() / 127.5 - 1).latent_dist
    mean, deviation = (part[0] * vae.config.scaling_factor for part in (distribution.mean, distribution.std))
    if not torch.isfinite(mean).all() or not torch.isfinite(deviation).all():
        # Zeroing them, as some trainers do, would train on a grey picture without a word.
        raise TrainingError(
            f"The VAE turned image {number} into values that are not numbers; check the base model."
        )
    return mean, deviation


@torch.no_grad()
def encode_texts(text_encoder: Any, tokenizer: Any, texts: Sequence[str], device: torch.device) -> Tensor:
    """Return CLIP's last hidden states of the texts, [texts, 77, width]; longer texts are cut."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    states: Tensor = text_encoder(tokens.input_ids.to(device))[0]
    return states


def fingerprint_of(pictures: Sequence[Image.Image], captions: Sequence[str]) -> str:
    """Return a hash of the fitted pictures and their captions, in order."""
    digest = hashlib.sha256()
    for picture, caption in zip(pictures, captions, strict=True):
        digest.update(f"{picture.size}{len(caption)}{caption}".encode())
        digest.update(picture.tobytes())
    return digest.hexdigest()
