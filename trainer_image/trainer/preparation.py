"""From a request's pictures and a base to encoded examples and a loaded UNet."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.base_model import load_text_encoder, load_tokenizer, load_unet, load_vae
from trainer.captions import with_trigger_word
from trainer.device import Device, is_out_of_memory
from trainer.examples import Examples, Latents, encode_pictures, encode_texts, fingerprint_of
from trainer.interrupt import Interrupt
from trainer.pictures import ComingPictures
from trainer.plan import TrainingPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What the training starts from; VAE and text encoder have left memory."""

    unet: Any
    examples: Examples
    captions: list[str]
    prompt_texts: Tensor
    """[prompts, 77, width]: the encodings of the sample prompts."""


def prepare(
    coming: ComingPictures,
    plan: TrainingPlan,
    prompts: Sequence[str],
    base: Path,
    device: Device,
    interrupt: Interrupt,
) -> Prepared:
    """Load the base and encode the pictures and captions.

    Raises:
        TrainerError: a picture, the storage or the base cannot be used.
    """
    unet: Any = load_unet(base, device.dtype, device.torch_device)
    coming.check()
    vae = load_vae(base, device.torch_device)
    coming.check()
    text_encoder = load_text_encoder(base, device.torch_device)
    tokenizer = load_tokenizer(base)
    pictures, captions = coming.result()
    logger.info("Encoding %d pictures and their captions", len(pictures))
    different = list(dict.fromkeys(captions))
    texts = encode_texts(text_encoder, tokenizer, [*different, *prompts, ""], device.torch_device)
    del text_encoder  # half a gigabyte that the VAE may need
    encode = partial(
        encode_pictures,
        vae,
        pictures,
        flip=plan.random_flip,
        device=device.torch_device,
        check=interrupt.check,
    )
    examples = Examples(
        latents=_with_room(unet, encode, device.torch_device),
        texts=_rows(texts, [*range(len(different)), -1]),
        caption_of=[different.index(caption) for caption in captions],
        fingerprint=fingerprint_of(pictures, captions),
    )
    prompt_texts = texts[len(different) : len(different) + len(prompts)]
    return Prepared(unet, examples, captions, prompt_texts)


def _with_room(unet: nn.Module, encode: Callable[[], list[Latents]], device: torch.device) -> list[Latents]:
    """Return what encode does; where the memory does not hold it, the UNet leaves the device meanwhile.

    It is not simply loaded later: that would take as long, and often there are pictures to wait for now.
    """
    try:
        return encode()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("The device is out of memory: the pictures are encoded without the UNet on it.")
    unet.to("cpu")
    torch.cuda.empty_cache()
    latents = encode()
    torch.cuda.empty_cache()
    unet.to(device)
    return latents


def _rows(texts: Tensor, numbers: list[int]) -> Tensor:
    return texts[numbers].contiguous()


def sample_prompts(prompts: Sequence[str], trigger_word: str | None) -> list[str]:
    """Return the prompts of samples.png, each with the trigger word."""
    return [with_trigger_word(prompt, trigger_word) for prompt in prompts]
