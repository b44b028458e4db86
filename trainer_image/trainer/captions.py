"""What is said about each picture: the request's captions, a .txt beside a picture, the trigger word."""

from collections.abc import Sequence
from pathlib import Path

from trainer.errors import InvalidImageError

_MAX_CAPTION_BYTES = 10_000


def compose_captions(
    pictures: Sequence[Path], captions: Sequence[str] | None, trigger_word: str | None
) -> list[str]:
    """Return one caption per picture; the trigger word stands first unless the caption has it already.

    A picture without any caption is described by the trigger word alone, or by nothing.

    Raises:
        InvalidImageError: a .txt beside a picture cannot be read.
    """
    texts = captions if captions is not None else [_caption_beside(picture) for picture in pictures]
    return [with_trigger_word(text.strip(), trigger_word) for text in texts]


def with_trigger_word(text: str, trigger_word: str | None) -> str:
    """Return text with the trigger word before it."""
    if not trigger_word or trigger_word.lower() in text.lower():
        return text
    return f"{trigger_word}, {text}" if text else trigger_word


def _caption_beside(picture: Path) -> str:
    file = picture.with_suffix(".txt")
    if not file.is_file():
        return ""
    try:
        with file.open("rb") as opened:
            return " ".join(opened.read(_MAX_CAPTION_BYTES).decode("utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidImageError(f"The caption file {file.name} cannot be read as UTF-8 text.") from error
