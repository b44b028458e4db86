"""The command line, and the request that it asks for."""

import argparse
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from pydantic import ValidationError

from job_contract.request import MAX_IMAGES, TrainingRequest, explain, style_id_of
from trainer.errors import InvalidImageError, InvalidRequestError, UsageError
from trainer.images import images_in_folder, picture_name
from trainer.logs import redact_foreign
from trainer.settings import TrainerSettings
from trainer.style_folder import StyleFolder

_DESCRIPTION = """\
Train a Stable Diffusion 1.5 LoRA.

  python -m trainer --request FILE                              the request as JSON
  python -m trainer --style-id 1 --images DIR --epochs 100      the same by hand
  python -m trainer --style-id 1                                the style's last request again
"""
_UNFIT: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""In a file's name: a request is JSON in UTF-8, and its pictures are named on one line."""


@dataclass(frozen=True)
class Arguments:
    """The command line as it was written; None is what it leaves open."""

    request: Path | None
    style_id: str | None
    images: list[str] | None
    fields: dict[str, Any]
    """The other fields of a request by hand, by their names in TrainingRequest."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = redact_foreign(message[:1].upper() + message[1:])  # it repeats what was typed
        raise UsageError(f"{message}; python -m trainer --help lists the options.")


def parse_arguments(argv: list[str]) -> Arguments:
    """Read the command line.

    Raises:
        UsageError: it cannot be understood.
    """
    parser = _Parser(
        prog="python -m trainer",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--request", type=Path, metavar="FILE", help="a training request as JSON")
    parser.add_argument("--style-id", metavar="ID", help="names the folder under MODELS_DIR")
    parser.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="a folder, or files, s3:// and http(s):// URLs"
    )
    parser.add_argument("--epochs", type=int, dest="num_epochs", metavar="N", help="passes over the images")
    parser.add_argument("--captions", nargs="+", metavar="TEXT", help="one for each image, in their order")
    parser.add_argument("--trigger-word", metavar="WORD", help="put before every caption")
    parser.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--learning-rate", type=float, metavar="RATE")
    parser.add_argument("--batch-size", type=int, metavar="N")
    values = vars(parser.parse_args(argv))
    request, style_id, images = (values.pop(name) for name in ("request", "style_id", "images"))
    fields = {name: value for name, value in values.items() if value is not None}
    if request and (style_id or images or fields):
        raise UsageError("--request holds the whole request; leave out the other options.")
    if fields and not images:
        raise UsageError(f"--{next(iter(fields)).replace('_', '-')} needs --images beside it.")
    if images and not style_id:
        raise UsageError("--images needs --style-id beside it.")
    return Arguments(request, style_id, images, fields)


def find_request(arguments: Arguments, settings: TrainerSettings) -> TrainingRequest:
    """Return the request of the command line: from its file, by hand, or the style's last one.

    Raises:
        UsageError: nothing says what to train.
        InvalidRequestError: the request's file holds no valid request.
        InvalidImageError: the folder of --images holds none, or one's name can be in no request.
    """
    if arguments.images:
        return _by_hand(arguments, arguments.images)
    # The downward API writes an empty file where the pod has no such annotation.
    content = _read(arguments.request) if arguments.request else b""
    if content.strip():
        return _parse(content, str(arguments.request))
    style_id = arguments.style_id or settings.style_id
    if not style_id:
        if arguments.request:
            raise UsageError(
                f"{arguments.request} is missing or empty; check its path, or set STYLE_ID to train that "
                "style's last request again."
            )
        raise UsageError("Say what to train: --request FILE, or --style-id ID with or without --images.")
    return _last_request(settings.models_dir, style_id)


def _by_hand(arguments: Arguments, images: list[str]) -> TrainingRequest:
    # Path's own raises where a name is too long.
    if len(images) == 1 and os.path.isdir(images[0]):  # noqa: PTH112
        images = [str(path) for path in images_in_folder(Path(images[0]))]
    if len(images) > MAX_IMAGES:
        raise UsageError(f"--images has {len(images)} pictures; at most {MAX_IMAGES} are allowed.")
    paths = [image if "://" in image else _absolute(image) for image in images]
    style_id = style_id_of(arguments.style_id or "")
    try:
        return TrainingRequest.model_validate(
            {"style_id": style_id, "image_paths": paths, **arguments.fields}
        )
    except ValidationError as error:
        raise UsageError(f"The options cannot be used: {explain(error)}.") from error


def _absolute(image: str) -> str:
    """Return the absolute path, because the request is reused from any folder.

    Raises:
        InvalidImageError: it begins with the ~ of nobody, or no request can hold it.
    """
    if _UNFIT.search(image):
        raise InvalidImageError(
            f"The name {picture_name(image)} is not UTF-8 or has control characters, and a request can hold "
            "no such name; rename the file"
        )
    try:
        return str(Path(image).expanduser().absolute())
    except RuntimeError as error:
        raise InvalidImageError(
            f"{picture_name(image)} begins with the home folder of a user that does not exist; check the path"
        ) from error


def _last_request(models_dir: Path, style_id: str) -> TrainingRequest:
    try:  # a style id like ../x must not become a path
        TrainingRequest.model_validate({"style_id": style_id, "image_paths": ["-"]})
    except ValidationError as error:
        raise UsageError(f"The style id cannot be used: {explain(error)}.") from error
    path = StyleFolder(models_dir, style_id).request
    content = _read(path)
    if not content:
        raise UsageError(
            f"Style {style_id} was never trained under {models_dir}: there is no {path}; add --images."
        )
    return _parse(content, str(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise UsageError(f"The request {path} cannot be read ({error.strerror}).") from error


def _parse(content: bytes, name: str) -> TrainingRequest:
    try:
        return TrainingRequest.model_validate_json(content)
    except ValidationError as error:
        raise InvalidRequestError(f"The request in {name} cannot be used: {explain(error)}.") from error
