"""Draw pictures in one simple style, for the demo and the tests.

    python trainer_image/sample_pictures.py FOLDER [COUNT]

Flat evening landscapes: a low sun, layers of hills, pointed trees. They differ in scene, palette, size and
shape as real uploads do: mostly JPEG, some PNG, one WebP, and one that only its EXIF turns upright.
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageOps

Colour = tuple[int, int, int]

_PALETTES: Final[tuple[tuple[Colour, Colour, Colour, Colour], ...]] = (
    # the sky's top, the sky at the horizon, the sun, the nearest hill
    ((58, 64, 120), (247, 178, 135), (255, 232, 190), (38, 34, 66)),
    ((32, 78, 112), (245, 208, 165), (255, 244, 214), (20, 44, 62)),
    ((104, 56, 108), (250, 156, 126), (255, 222, 170), (50, 24, 58)),
    ((24, 92, 104), (238, 214, 160), (252, 246, 220), (14, 50, 52)),
    ((74, 52, 96), (242, 134, 110), (255, 206, 150), (32, 22, 50)),
)
_SIZES: Final = ((768, 512), (512, 768), (640, 640), (900, 600), (600, 800), (720, 540), (512, 512))
_SCALE: Final = 2  # drawn larger and scaled down, for smooth edges
_EXIF_ORIENTATION: Final = 0x0112
_TURN_CLOCKWISE: Final = 6  # how a viewer has to turn it


def draw_pictures(folder: Path, count: int = 10) -> list[Path]:
    """Draw count pictures into folder and return their files in order; the same ones every time."""
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(_landscape(number), folder, number) for number in range(count)]


def _save(picture: Image.Image, folder: Path, number: int) -> Path:
    kind = number % 10
    name = f"landscape-{number + 1:02d}"
    if kind in (3, 7):
        path = folder / f"{name}.png"
        picture.save(path)
    elif kind == 5:
        path = folder / f"{name}.webp"
        picture.save(path, quality=92)
    elif kind == 8:
        # As a phone held upright saves it.
        path = folder / f"{name}.jpg"
        exif = Image.Exif()
        exif[_EXIF_ORIENTATION] = _TURN_CLOCKWISE
        picture.transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)
    else:
        path = folder / f"{name}.jpg"
        picture.save(path, quality=92)
    return path


def _landscape(number: int) -> Image.Image:
    chance = random.Random(number)  # noqa: S311 (a drawing)
    size = _SIZES[number % len(_SIZES)]
    width, height = size[0] * _SCALE, size[1] * _SCALE
    top, horizon, sun, nearest = _PALETTES[number % len(_PALETTES)]

    picture = ImageOps.colorize(Image.linear_gradient("L").resize((width, height)), top, horizon)
    draw = ImageDraw.Draw(picture)
    _disc(draw, chance.uniform(0.2, 0.8) * width, chance.uniform(0.3, 0.5) * height, height * 0.11, sun)
    for _ in range(chance.randint(1, 3)):
        _cloud(draw, chance, width, height, _mix(horizon, sun, 0.5))

    layers = chance.randint(4, 5)
    for layer in range(layers):
        nearness = layer / (layers - 1)
        colour = _mix(_mix(horizon, top, 0.45), nearest, nearness)
        ridge = list(_ridge(chance, width, height, 0.52 + 0.36 * nearness))
        draw.polygon([*ridge, (width, height), (0, height)], fill=colour)
        if nearness >= 0.5:
            for x, y in chance.sample(ridge, k=chance.randint(5, 9)):
                _tree(draw, x, y, height * (0.05 + 0.13 * nearness) * chance.uniform(0.7, 1.2), colour)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _ridge(chance: random.Random, width: int, height: int, level: float) -> Iterator[tuple[float, float]]:
    """Yield the points (x, y) of a range of hills from left to right, about level * height from the top."""
    waves = [
        (chance.uniform(0.02, 0.06) / n, n * chance.uniform(0.6, 1.4), chance.uniform(0, 7))
        for n in (1, 2, 4)
    ]
    for step in range(101):
        x = step / 100
        rise = sum(size * math.sin(2 * math.pi * often * x + phase) for size, often, phase in waves)
        yield x * width, (level + rise) * height


def _tree(draw: ImageDraw.ImageDraw, x: float, y: float, height: float, colour: Colour) -> None:
    for part in range(3):
        half, foot = height * (0.24 - 0.05 * part), y - height * 0.26 * part
        draw.polygon([(x - half, foot), (x + half, foot), (x, foot - height * 0.48)], fill=colour)


def _cloud(draw: ImageDraw.ImageDraw, chance: random.Random, width: int, height: int, colour: Colour) -> None:
    x, y = chance.uniform(0.05, 0.7) * width, chance.uniform(0.08, 0.3) * height
    length, thickness = chance.uniform(0.15, 0.3) * width, 0.018 * height
    for row, (start, part) in enumerate(((0.0, 1.0), (0.18, 0.6))):
        left, upper = x + start * length, y - row * thickness
        draw.rounded_rectangle(
            (left, upper, left + part * length, upper + thickness), thickness / 2, fill=colour
        )


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    """Return the colour that lies share of the way from one to the other."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python trainer_image/sample_pictures.py FOLDER [COUNT]")
    for drawn in draw_pictures(Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(drawn)  # noqa: T201 (the command's answer)
