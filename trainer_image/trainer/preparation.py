"""From a request to encoded examples and a loaded UNet; pictures come while the models load."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from job_contract.request import TrainingRequest
from trainer.base_model import load_text_encoder, load_tokenizer, load_unet, load_vae
from trainer.captions import compose_captions, with_trigger_word
from trainer.device import Device
from trainer.downloads import fetch_images
from trainer.examples import Examples, encode_pictures, encode_texts, fingerprint_of, fit_picture
from trainer.images import validate_pictures
from trainer.interrupt import Interrupt
from trainer.plan import TrainingPlan
from trainer.storage import ObjectStorage

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
    request: TrainingRequest,
    plan: TrainingPlan,
    prompts: Sequence[str],
    base: Path,
    device: Device,
    images_folder: Path,
    interrupt: Interrupt,
) -> Prepared:
    """Fetch, check and encode the pictures and captions, and load the UNet.

    Raises:
        TrainerError: a picture, the storage or the base cannot be used.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="pictures")
    try:
        coming = executor.submit(_pictures, request, plan, images_folder, interrupt)
        unet: Any = load_unet(base, device.dtype).to(device.torch_device)
        vae = load_vae(base).to(device.torch_device)
        text_encoder = load_text_encoder(base).to(device.torch_device)
        tokenizer = load_tokenizer(base)
        pictures, captions = coming.result()
    finally:
        # Not waited for: SIGTERM raises here, and the thread ends by the interrupt's event.
        executor.shutdown(wait=False, cancel_futures=True)
    logger.info("Encoding %d pictures and their captions", len(pictures))
    different = list(dict.fromkeys(captions))
    texts = encode_texts(text_encoder, tokenizer, [*different, *prompts, ""], device.torch_device)
    examples = Examples(
        latents=encode_pictures(
            vae, pictures, flip=plan.random_flip, device=device.torch_device, check=interrupt.check
        ),
        texts=_rows(texts, [*range(len(different)), -1]),
        caption_of=[different.index(caption) for caption in captions],
        fingerprint=fingerprint_of(pictures, captions),
    )
    prompt_texts = texts[len(different) : len(different) + len(prompts)]
    return Prepared(unet, examples, captions, prompt_texts)


def _rows(texts: Tensor, numbers: list[int]) -> Tensor:
    return texts[numbers].contiguous()


def _pictures(
    request: TrainingRequest, plan: TrainingPlan, folder: Path, interrupt: Interrupt
) -> tuple[list[Image.Image], list[str]]:
    """Return the fitted pictures and their captions."""
    files = fetch_images(request.image_paths, folder, ObjectStorage(), interrupt.event)
    fit = partial(fit_picture, resolution=plan.resolution, aspect_buckets=plan.aspect_buckets)
    pictures = validate_pictures(files, request.image_paths, fit=fit)
    return pictures, compose_captions(files, request.captions, request.trigger_word)


def sample_prompts(prompts: Sequence[str], trigger_word: str | None) -> list[str]:
    """Return the prompts of samples.png, each with the trigger word."""
    return [with_trigger_word(prompt, trigger_word) for prompt in prompts]
