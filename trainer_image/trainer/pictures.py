"""The pictures of a training: fetched, checked and fitted on a thread, while torch and the models load."""

import math
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, Self

from PIL import Image, ImageOps

from job_contract.request import TrainingRequest
from trainer.captions import compose_captions
from trainer.downloads import fetch_images, remove_downloads
from trainer.images import square, validate_pictures
from trainer.interrupt import Interrupt
from trainer.plan import TrainingPlan
from trainer.storage import ObjectStorage

_BUCKET_STEP: Final = 64
"""The UNet halves the latents, an eighth of the picture, three times: 8 * 8 pixels."""

FittedPictures = tuple[list[Image.Image], list[str]]
"""Pictures of the sizes that are trained, and a caption for each."""


class ComingPictures:
    """A context manager that starts to fetch a request's pictures, and has them when they are asked for.

    Args:
        folder: what is downloaded goes there. That is removed at the end, and at the beginning what a killed
            run left of it.
        interrupt: its event ends the downloads.
    """

    def __init__(
        self, request: TrainingRequest, plan: TrainingPlan, folder: Path, interrupt: Interrupt
    ) -> None:
        self._folder = folder
        self._fetch = partial(_fetch, request, plan, folder, interrupt)

    def __enter__(self) -> Self:
        remove_downloads(self._folder)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._coming: Future[FittedPictures] = self._executor.submit(self._fetch)
        return self

    def __exit__(self, *_: object) -> None:
        # Not waited for: SIGTERM raises in the main thread, and this one ends by the interrupt's event.
        self._executor.shutdown(wait=False, cancel_futures=True)
        remove_downloads(self._folder)

    def check(self) -> None:
        """Raise what result() would if it is known by now that a picture or the storage cannot be used."""
        if self._coming.done():
            self._coming.result()

    def result(self) -> FittedPictures:
        """Return the fitted pictures and their captions, in the request's order.

        Raises:
            TrainerError: a picture or the storage cannot be used.
        """
        return self._coming.result()


def _fetch(
    request: TrainingRequest, plan: TrainingPlan, folder: Path, interrupt: Interrupt
) -> FittedPictures:
    files = fetch_images(request.image_paths, folder, ObjectStorage(), interrupt.event)
    fit = partial(fit_picture, resolution=plan.resolution, aspect_buckets=plan.aspect_buckets)
    pictures = validate_pictures(files, request.image_paths, fit=fit)
    local = [file for file in files if isinstance(file, Path)]  # all of them: the others are refused above
    return pictures, compose_captions(local, request.captions, request.trigger_word)


def fit_picture(picture: Image.Image, resolution: int, *, aspect_buckets: bool) -> Image.Image:
    """Return picture cropped and scaled to resolution x resolution, or to the bucket nearest its shape."""
    if not aspect_buckets:
        return square(picture, resolution)
    ratio = picture.width / picture.height
    size = min(bucket_sizes(resolution), key=lambda bucket: abs(math.log(bucket[0] / bucket[1] / ratio)))
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)


def bucket_sizes(resolution: int) -> list[tuple[int, int]]:
    """Return sizes (width, height) of at most resolution^2 pixels and a shape of at most 5:2."""
    sizes = set()
    for width in range(_BUCKET_STEP, resolution + 1, _BUCKET_STEP):
        height = resolution * resolution // width // _BUCKET_STEP * _BUCKET_STEP
        if 2 * height <= 5 * width:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)
