"""Every random choice of a training as a pure function of (seed, epoch): nothing to save, nothing to lose.

All is drawn on the CPU, for one epoch at once and keyed by image, so that neither the device, the number
of devices, the batch size nor a restart changes what an image sees in an epoch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class EpochDraws:
    """What one epoch draws. Lists are by image."""

    batches: list[list[int]]
    """The image numbers of each optimizer step; each image once, images of one batch of one shape."""
    timesteps: Tensor
    """[images], int64 in [0, 1000)."""
    noise: list[Tensor]
    """Each [4, h, w], standard normal, float32."""
    posterior: list[Tensor]
    """As noise: where in the VAE's distribution the image's latents are taken."""
    offsets: Tensor
    """[images, 4], standard normal: the noise that is equal over a channel."""
    flipped: list[bool]
    captionless: list[bool]


def steps_per_epoch(shapes: Sequence[Shape], batch_size: int) -> int:
    """Return the optimizer steps that one pass over all images takes."""
    return sum(-(-shapes.count(shape) // batch_size) for shape in set(shapes))


def draw_epoch(
    seed: int,
    epoch: int,
    shapes: Sequence[Shape],
    *,
    batch_size: int,
    timesteps: int,
    random_flip: bool,
    caption_dropout: float,
) -> EpochDraws:
    """Draw epoch number epoch (from 1) for images whose latents have these shapes."""
    count = len(shapes)
    choices = _generator(seed, epoch, "choices")
    return EpochDraws(
        batches=_batches(shapes, batch_size, _generator(seed, epoch, "order")),
        timesteps=torch.randint(timesteps, (count,), generator=choices),
        flipped=(torch.rand(count, generator=choices) < (0.5 if random_flip else 0)).tolist(),
        captionless=(torch.rand(count, generator=choices) < caption_dropout).tolist(),
        offsets=torch.randn(count, shapes[0][0], generator=choices),
        noise=_normal(shapes, _generator(seed, epoch, "noise")),
        posterior=_normal(shapes, _generator(seed, epoch, "posterior")),
    )


def _batches(shapes: Sequence[Shape], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(shapes), generator=generator).tolist()
    batches = []
    for shape in dict.fromkeys(shapes):
        members = [image for image in order if shapes[image] == shape]
        batches += [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def _normal(shapes: Sequence[Shape], generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a generator whose stream no other epoch, purpose or seed shares."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
