"""What is said about each picture: the request's captions, a .txt beside a picture, the trigger word."""

import codecs
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from trainer.errors import InvalidImageError

_MAX_CAPTION_BYTES: Final = 10_000
"""Of a longer file the beginning is taken; CLIP reads less than a tenth of that."""


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
    """Return text with the trigger word before it, unless it is a word of text already, in any case."""
    if not trigger_word or re.search(rf"(?<!\w){re.escape(trigger_word)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{trigger_word}, {text}" if text else trigger_word


def _caption_beside(picture: Path) -> str:
    file = picture.with_suffix(".txt")
    # Path's own raises where the picture's name leaves no room for .txt.
    if not os.path.isfile(file):  # noqa: PTH113
        return ""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_CAPTION_BYTES)
        # The limit may cut a character in two; what is left of it does not count then.
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        return " ".join(decoder.decode(content, final=len(content) < _MAX_CAPTION_BYTES).split())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidImageError(f"The caption file {file.name} cannot be read as UTF-8 text.") from error
