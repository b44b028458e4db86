"""Pictures: from a file to upright RGB pixels, or to a sentence that says what is wrong with which."""

import io
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, PngImagePlugin

from trainer.colours import to_srgb
from trainer.errors import InvalidImageError
from trainer.jpeg_scans import count_scans
from trainer.logs import fit_for_log

_FORMATS: Final = ("JPEG", "PNG", "WEBP")
_SUFFIXES: Final = {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp"}
_OTHER_SUFFIXES: Final = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".tif", ".tiff"}
"""Of pictures that are not read: a person may think that they are."""
_PARALLEL_DECODES: Final = 4
_REPORTED: Final = 5
"""So many pictures are named in one sentence; the others are counted."""
_NAME_CHARACTERS: Final = 120
_SQUARE_SIDE: Final = 512
_JPEG_START: Final = b"\xff\xd8\xff"
_COSTLY_METADATA: Final = (b"Exif\0\0", b"iCCP", b"iTXt", b"zTXt")
"""Begin a JPEG's EXIF, before which Pillow copies all that came before, and what a PNG has compressed."""

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
    max_scans: int = 100
    """Of a progressive JPEG, which has about 10. Each goes over all the pixels, which takes about 20 ms, and
    may be as short as 75 bytes."""
    max_metadata_blocks: int = 100
    """Of the kinds that cost much more time than bytes; a picture has a few."""


def images_in_folder(folder: Path) -> list[Path]:
    """Return the JPEG, PNG and WebP files directly in folder, told by their suffixes, by name.

    Hidden ones stay out. Other pictures, and links that lead nowhere, do so with a warning.

    Raises:
        InvalidImageError: there is no such folder, it can't be read, or it has no pictures.
    """
    try:
        # macOS puts a ._a.jpg, which is no picture, beside every a.jpg on a foreign volume.
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
        files = [entry for entry in entries if entry.suffix.lower() in _SUFFIXES and entry.is_file()]
        _tell_left_out(entries, set(files))
    except OSError as error:
        raise unreadable(f"The folder {picture_name(str(folder))}", error) from error
    if not files:
        raise InvalidImageError(f"{folder} holds no .jpg, .jpeg, .png or .webp file; put pictures there")
    return files


def validate_pictures(
    files: Sequence[Path | InvalidImageError],
    names: Sequence[str],
    limits: PictureLimits | None = None,
    fit: Callable[[Image.Image], Image.Image] | None = None,
) -> list[Image.Image]:
    """Decode every picture once and return them in order, or what fit makes of each.

    fit is applied as soon as a picture is decoded: a hundred full-size ones may not fit into memory.

    Args:
        files: the pictures; an error in the place of one is why it has no file.
        names: what the request has for each.

    Raises:
        InvalidImageError: some cannot be used; it names them all, up to a handful.
        MemoryError: it does not hold them while they are decoded, which is not their fault.
    """
    limits = limits or PictureLimits()

    def load(file: Path | InvalidImageError, name: str) -> Image.Image | InvalidImageError:
        if isinstance(file, InvalidImageError):
            return file
        try:
            picture = load_picture(file, name, limits)
            return fit(picture) if fit else picture
        except InvalidImageError as error:
            return error

    with ThreadPoolExecutor(_PARALLEL_DECODES, thread_name_prefix="decode") as executor:
        results = list(executor.map(load, files, names))
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
        limits: checked before anything is decoded.

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
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise unreadable(name, error) from error
    _check_work(content, name, limits)
    try:
        picture = Image.open(io.BytesIO(content), formats=_FORMATS)
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
    """Return a picture's path or URL as people may see it: on one line, without query, password and excess
    length.
    """
    # Here it is known to be a URL: where one with spaces or quotes in it ends, nobody can tell later.
    name = fit_for_log(path.partition("?")[0] if "://" in path else path).replace("\n", "\\n")
    return name if len(name) <= _NAME_CHARACTERS else "…" + name[-_NAME_CHARACTERS:]


def too_large(name: str, limits: PictureLimits) -> str:
    """Return the sentence for a file of too many bytes."""
    return f"{name} is larger than {limits.max_bytes / 1e6:g} MB; make it smaller"


def unreadable(name: str, error: OSError | ValueError) -> InvalidImageError:
    """Return the error for a file or folder that the operating system does not hand out."""
    if isinstance(error, PermissionError):
        return InvalidImageError(
            f"{name} cannot be read by user {os.geteuid()}, who runs the trainer; chmod a+r the file and "
            "a+rx its folders"
        )
    return InvalidImageError(f"{name} cannot be read ({getattr(error, 'strerror', error)}); check the path")


def all_refusals(refusals: Sequence[InvalidImageError]) -> InvalidImageError:
    """Return one error that names up to five bad pictures at once; its cause is the first one."""
    error = InvalidImageError(
        "; ".join(_first([str(refusal) for refusal in refusals], "more pictures cannot be used"))
    )
    error.__cause__ = refusals[0]
    return error


def _first(texts: list[str], others: str) -> list[str]:
    """Return the first five texts and, where there are more, how many others."""
    left = len(texts) - _REPORTED
    return [*texts[:_REPORTED], f"and {left} {others}"] if left > 0 else texts


def _tell_left_out(entries: Sequence[Path], files: set[Path]) -> None:
    """Warn of what looks like a picture to a person and is not among the files that are taken."""
    names = [
        picture_name(entry.name) + ("" if entry.exists() else " (a broken link)")
        for entry in entries
        if entry.suffix.lower() in _SUFFIXES | _OTHER_SUFFIXES and entry not in files and not entry.is_dir()
    ]
    if names:
        logger.warning(
            "%s left out: %s. Only files that end in %s are taken.",
            "1 picture is" if len(names) == 1 else f"{len(names)} pictures are",
            ", ".join(_first(names, "more")),
            ", ".join(sorted(_SUFFIXES)),
        )


def _check_work(content: bytes, name: str, limits: PictureLimits) -> None:
    """Refuse a small file that would be decoded for minutes or hours."""
    if content.startswith(_JPEG_START) and count_scans(content, limits.max_scans) > limits.max_scans:
        raise InvalidImageError(
            f"{name} is a JPEG of more than {limits.max_scans} scans; save it again as a plain JPEG"
        )
    if sum(map(content.count, _COSTLY_METADATA)) > limits.max_metadata_blocks:
        raise InvalidImageError(
            f"{name} has more than {limits.max_metadata_blocks} blocks of metadata; save it again without"
        )


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
