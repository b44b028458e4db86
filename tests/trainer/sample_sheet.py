"""Reads samples.png as a person does: its pictures, and what is written beside and above them."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont


@dataclass(frozen=True)
class SampleSheet:
    """A sheet of pictures that are side pixels wide and high, none of which has a white edge."""

    image: Image.Image
    side: int
    left: list[int]
    """Where each column of pictures begins."""
    top: list[int]
    """Where each row of pictures begins."""

    def picture(self, row: int, column: int) -> Image.Image:
        x, y = self.left[column], self.top[row]
        return self.image.crop((x, y, x + self.side, y + self.side))

    def name(self, row: int) -> Image.Image:
        return self.image.crop((0, self.top[row], self.left[0], self.top[row] + self.side))

    def heading(self, column: int) -> Image.Image:
        return self.image.crop((self.left[column], 0, self.left[column] + self.side, self.top[0]))

    @property
    def gaps(self) -> list[int]:
        """The white pixels between each two pictures that are neighbours."""
        neighbours = [*pairwise(self.left), *pairwise(self.top)]
        return [after - before - self.side for before, after in neighbours]


def read_sheet(path: Path, side: int) -> SampleSheet:
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    ink = np.asarray(image).min(axis=2) < 255
    bottom = np.flatnonzero(ink.any(axis=1))[-1] + 1
    left = _begins(ink[bottom - side : bottom].any(axis=0), side)
    top = _begins(ink[:, left[-1] : left[-1] + side].any(axis=1), side)
    return SampleSheet(image, side, left, top)


def _begins(inked: "np.ndarray[tuple[int], np.dtype[np.bool_]]", side: int) -> list[int]:
    """Return where stretches of exactly side pixels with ink begin: shorter ones are text."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inked, [False]]).astype(int)))
    return [int(begin) for begin, end in edges.reshape(-1, 2) if end - begin == side]


def shows(area: Image.Image, text: str) -> bool:
    """Say whether this line of text, and nothing else, stands in the area."""
    drawn = Image.new("RGB", (20 * len(text), 40), "white")
    ImageDraw.Draw(drawn).text((0, 0), text, "black", ImageFont.load_default(14))
    return _ink(area) == _ink(drawn)


def _ink(area: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Return the smallest rectangle with all that is drawn: its size and its pixels."""
    ink = ImageChops.invert(area.convert("L"))
    drawn = ink.crop(ink.getbbox())
    return drawn.size, drawn.tobytes()
