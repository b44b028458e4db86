"""Pictures: from a file to upright RGB pixels, or to a sentence that says what is wrong with which."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, PngImagePlugin

from job_contract.redaction import redact
from trainer.colours import to_srgb
from trainer.errors import InvalidImageError

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_SUFFIXES: Final = {".jpg", ".jpeg", ".png", ".webp"}
_PARALLEL_DECODES: Final = 4
_REPORTED: Final = 5
"""So many bad pictures are named in one sentence; the others are counted."""
_NAME_CHARACTERS: Final = 120
_SQUARE_SIDE: Final = 512

# Photoshop writes megabytes of history into a picture; Pillow by default takes more than one for an attack.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be at most, and has to be at least."""

    max_bytes: int = 50_000_000
    max_pixels: int = 50_000_000
    """A phone's 48 megapixels pass; four decoded at once take 3 GB at most. It has to be below the 89
    million from which on Pillow itself takes a picture for a decompression bomb."""
    min_side: int = 256
    """Pixels; a smaller one has too little to learn from once it is enlarged to 512."""


def images_in_folder(folder: Path) -> list[Path]:
    """Return the .jpg, .jpeg, .png and .webp files directly in folder, by name; hidden ones stay out.

    Raises:
        InvalidImageError: there is no such folder, it can't be read, or it has no pictures.
    """
    try:
        files = sorted(
            file
            for file in folder.iterdir()
            # macOS puts a ._a.jpg, which is no picture, beside every a.jpg on a foreign volume.
            if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
        )
    except OSError as error:
        raise InvalidImageError(f"The folder {folder} cannot be read ({error.strerror})") from error
    if not files:
        raise InvalidImageError(f"{folder} holds no .jpg, .jpeg, .png or .webp file; put pictures there")
    return files


def validate_pictures(
    paths: Sequence[Path],
    names: Sequence[str],
    limits: PictureLimits | None = None,
    fit: Callable[[Image.Image], Image.Image] | None = None,
) -> list[Image.Image]:
    """Decode every picture once and return them in order, or what fit makes of each.

    fit is applied as soon as a picture is decoded: a hundred full-size ones may not fit into memory.

    Raises:
        InvalidImageError: some cannot be used; it names them all, up to a handful.
        MemoryError: it does not hold them while they are decoded, which is not their fault.
    """
    limits = limits or PictureLimits()

    def load(path: Path, name: str) -> Image.Image | InvalidImageError:
        try:
            picture = load_picture(path, name, limits)
            return fit(picture) if fit else picture
        except InvalidImageError as error:
            return error

    with ThreadPoolExecutor(_PARALLEL_DECODES, thread_name_prefix="decode") as executor:
        results = list(executor.map(load, paths, names))
    refusals = [result for result in results if isinstance(result, InvalidImageError)]
    if refusals:
        raise all_refusals(refusals)
    return [result for result in results if isinstance(result, Image.Image)]


def load_picture(path: Path, name: str, limits: PictureLimits | None = None) -> Image.Image:
    """Decode a whole JPEG, PNG or WebP file, told by its content, into an upright sRGB picture.

    Transparency becomes white. Of an animation the first frame is taken.

    Args:
        path: the file.
        name: the path or URL that the request has for it; the error names the picture so, redacted.
        limits: of bytes and pixels, checked before anything is decoded.

    Raises:
        InvalidImageError: the picture can't be used; the text says why and what to do.
        MemoryError: it does not hold the picture, which another machine's may.
    """
    limits, name = limits or PictureLimits(), picture_name(name)
    try:
        size = path.stat().st_size
        if size == 0:  # as devices and pipes say too
            raise InvalidImageError(f"{name} is empty; upload the picture again")
        if size > limits.max_bytes:
            raise InvalidImageError(too_large(name, limits))
        content = path.open("rb")
    except (OSError, ValueError) as error:
        # ValueError: a path with a NUL.
        raise InvalidImageError(f"{name} cannot be read ({getattr(error, 'strerror', error)})") from error
    with content:
        try:
            picture = Image.open(content, formats=_FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InvalidImageError(f"{name} has too many pixels; {_most(limits)}") from error
        except MemoryError:
            raise
        except Exception as error:
            # Decoders fail on hostile bytes with whatever exception they happen to meet.
            raise InvalidImageError(
                f"{name} is not a JPEG, PNG or WebP picture, or is damaged or has too much metadata at its "
                "beginning; save it again as one of these, without metadata"
            ) from error
        _check_size(picture, name, limits)
        try:
            picture.load()
            _turn_upright(picture, name)
            return to_srgb(picture, name)
        except MemoryError:
            raise
        except Exception as error:
            raise InvalidImageError(
                f"{name} is damaged or incomplete and cannot be decoded; upload it again"
            ) from error


def square(picture: Image.Image, size: int = _SQUARE_SIDE) -> Image.Image:
    """Return the largest centred square of picture, resized to size x size pixels."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def picture_name(path: str) -> str:
    """Return a picture's path or URL as people may see it: without query, password and excess length."""
    # Here it is known to be a URL: where one with spaces or quotes in it ends, nobody can tell later.
    name = redact(path.partition("?")[0] if "://" in path else path)
    return name if len(name) <= _NAME_CHARACTERS else "…" + name[-_NAME_CHARACTERS:]


def too_large(name: str, limits: PictureLimits) -> str:
    """Return the sentence for a file of too many bytes."""
    return f"{name} is larger than {limits.max_bytes / 1e6:g} MB; make it smaller"


def all_refusals(refusals: Sequence[InvalidImageError]) -> InvalidImageError:
    """Return one error that names up to five bad pictures at once; its cause is the first one."""
    sentences = [str(refusal) for refusal in refusals[:_REPORTED]]
    if len(refusals) > _REPORTED:
        sentences.append(f"and {len(refusals) - _REPORTED} more pictures cannot be used")
    error = InvalidImageError("; ".join(sentences))
    error.__cause__ = refusals[0]
    return error


def _check_size(picture: Image.Image, name: str, limits: PictureLimits) -> None:
    """Judge the size that the header states, before memory is taken for the pixels."""
    width, height = picture.size
    if width * height > limits.max_pixels:
        raise InvalidImageError(f"{name} has {width}x{height} pixels; {_most(limits)}")
    if min(width, height) < limits.min_side:
        raise InvalidImageError(
            f"{name} has {width}x{height} pixels; at least {limits.min_side} a side are needed"
        )


def _most(limits: PictureLimits) -> str:
    return f"at most {limits.max_pixels / 1e6:g} million are allowed, so make it smaller"


def _turn_upright(picture: Image.Image, name: str) -> None:
    """Turn the picture as its EXIF orientation says."""
    try:
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 (of many kinds)
        # EXIF is often broken by the programs that edit it; viewers show such a picture as it lies, too.
        logger.info("%s has EXIF data that cannot be read (%s); it is taken as it lies.", name, error)
