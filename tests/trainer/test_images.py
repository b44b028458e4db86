"""Hostile pictures: each loads as upright RGB of a fair size, or is refused with its name and a reason."""

import contextlib
import io
import itertools
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from sample_pictures import draw_pictures
from trainer.errors import InvalidImageError
from trainer.images import (
    PictureLimits,
    images_in_folder,
    load_picture,
    picture_name,
    square,
    validate_pictures,
)
from trainer.jpeg_scans import count_scans

RED, BLUE = (220, 30, 30), (30, 30, 220)


def noise(width: int = 300, height: int = 280) -> Image.Image:
    """A picture that does not compress, so that a cut anywhere takes pixels away."""
    return Image.frombytes("RGB", (width, height), np.random.default_rng(0).bytes(width * height * 3))


def red_over_blue(width: int = 300, height: int = 400) -> Image.Image:
    picture = Image.new("RGB", (width, height), BLUE)
    picture.paste(RED, (0, 0, width, height // 2))
    return picture


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def segment(marker: int, content: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_scans(copies: int, between: bytes = b"") -> bytes:
    """A progressive JPEG whose last scan, with something before it, comes so often once more."""
    whole = saved(Image.new("L", (300, 300), 128), "JPEG", progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + (between + last) * copies + whole[-2:]


def icc_profile(kind: bytes, space: bytes, inner_space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile (ICC.1:2001-04): a header of 128 bytes, a table of tags, the tags' contents."""
    illuminant = struct.pack(">iii", 63190, 65536, 54061)  # D50, in 65536ths
    header = struct.pack(">II4s4s4s", 0, 0x02400000, kind, space, inner_space) + bytes(12) + b"acsp"
    header = header + bytes(28) + illuminant
    tags = {b"wtpt": b"XYZ " + bytes(4) + illuminant, **tags}
    start, table, contents = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(contents), len(content))
        contents += content + bytes(-len(content) % 4)
    return struct.pack(">I", start + len(contents)) + header + bytes(124 - len(header)) + table + contents


def profile_with_red_and_green_swapped() -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


def profile_of_linear_grey() -> bytes:
    return icc_profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8)})


def profile_of_inks_whose_cyan_is_red() -> bytes:
    straight = bytes(range(256))
    white, red, black = (255, 128, 128), (136, 208, 195), (0, 128, 128)  # L*, a*, b*
    inks = itertools.product((0, 1), repeat=4)  # cyan, magenta, yellow, black
    colours = [black if k else red if c else white for c, _, _, k in inks]
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + struct.pack(">9i", *(65536, 0, 0, 0) * 2, 65536)
    table += straight * 4 + bytes(itertools.chain(*colours)) + straight * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def loaded(content: bytes, folder: Path, name: str = "https://host/a.jpg?token=secret") -> Image.Image:
    path = folder / "picture"
    path.write_bytes(content)
    return load_picture(path, name)


def is_near(picture: Image.Image, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
    pixel = picture.getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(one - other) <= 12 for one, other in zip(pixel, colour, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_loads_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    picture = loaded(saved(red_over_blue(), kind), tmp_path)
    assert (picture.mode, picture.size) == ("RGB", (300, 400))
    assert is_near(picture, (150, 50), RED)
    assert is_near(picture, (150, 350), BLUE)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "PDF"])
def test_another_format_is_refused_even_if_it_is_called_jpg(tmp_path: Path, kind: str) -> None:
    """Pillow reads dozens of formats, some by running Ghostscript."""
    with pytest.raises(InvalidImageError, match="not a JPEG, PNG or WebP"):
        loaded(saved(red_over_blue(), kind), tmp_path)


@pytest.mark.parametrize(
    "content", [b"not a picture", b"<html>404</html>", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]
)
def test_a_file_that_is_no_picture_is_refused_with_its_name_but_no_query(
    tmp_path: Path, content: bytes
) -> None:
    with pytest.raises(InvalidImageError, match=r"^https://host/a\.jpg is not a JPEG") as raised:
        loaded(content, tmp_path)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_truncated_picture_is_refused(tmp_path: Path, kind: str, kept: float) -> None:
    """Trained on, its lower part would be grey (sd-scripts 1316)."""
    whole = saved(noise(), kind)
    with pytest.raises(InvalidImageError, match=r"a\.jpg"):
        loaded(whole[: int(len(whole) * kept)], tmp_path)


def test_a_truncated_picture_that_has_to_be_turned_is_refused(tmp_path: Path) -> None:
    """Turning decodes too, and a failure to turn is no refusal."""
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(noise(), "JPEG", exif=exif)
    with pytest.raises(InvalidImageError, match=r"a\.jpg is damaged"):
        loaded(whole[: len(whole) // 2], tmp_path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidImageError, match="empty"):
        loaded(b"", tmp_path)


@pytest.mark.parametrize(("width", "height"), [(255, 400), (400, 255), (1, 1), (0, 0)])
def test_a_picture_below_256_pixels_a_side_is_refused(tmp_path: Path, width: int, height: int) -> None:
    content = saved(Image.new("RGB", (width, height)), "PNG") if width else png_header(0, 0)
    with pytest.raises(InvalidImageError, match=r"a\.jpg"):
        loaded(content, tmp_path)


def test_a_picture_of_256_pixels_a_side_is_enough(tmp_path: Path) -> None:
    assert loaded(saved(Image.new("RGB", (256, 256)), "PNG"), tmp_path).size == (256, 256)


@pytest.mark.parametrize("side", [7072, 9400, 9500, 60_000, 2**31 - 1])
@pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # outside of tests only a line on stderr
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, side: int) -> None:
    """60000 x 60000 pixels fit into kilobytes of PNG and 10 GB of memory."""
    content = png_header(side, side) + png_chunk(b"IDAT", zlib.compress(b"\0")) + png_chunk(b"IEND", b"")
    with pytest.raises(InvalidImageError, match=r"a\.jpg has .*at most 50 million"):
        loaded(content, tmp_path)


def test_a_text_chunk_bomb_is_refused(tmp_path: Path) -> None:
    text = png_chunk(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * 100_000_000))
    whole = saved(red_over_blue(), "PNG")
    with pytest.raises(InvalidImageError, match=r"a\.jpg"):
        loaded(whole[:33] + text + whole[33:], tmp_path)


@pytest.mark.parametrize(
    "between",
    [
        b"",
        segment(0xFE, b"\xff\xd9"),
        segment(0xE2, b"\xff\xda\xff\xd9"),
        b"\xff\xff",
        b"\0\xff\0",
        b"\xff\xd3",
    ],
    ids=["nothing", "an end in a comment", "a scan in metadata", "filling", "junk", "a restart"],
)
def test_a_jpeg_bomb_of_scans_is_refused_before_it_is_decoded(tmp_path: Path, between: bytes) -> None:
    """10,000 scans over 49 megapixels fit into 0.9 MB, and were decoded for minutes on the GPU's time."""
    with pytest.raises(
        InvalidImageError, match=r"a\.jpg is a JPEG of more than 100 scans; save it again as a"
    ):
        loaded(with_scans(100, between), tmp_path)
    assert loaded(with_scans(80, between), tmp_path).size == (300, 300)


def test_what_looks_like_scans_outside_of_the_pixels_is_none(tmp_path: Path) -> None:
    """Phones put a film behind a picture, where any two bytes may stand; cameras put a small one into it."""
    whole = saved(noise(), "JPEG", progressive=True)
    preview = segment(0xE1, b"\xff\xda" * 1000)
    content = whole[:2] + preview + whole[2:] + b"\xff\xda" * 1000
    assert count_scans(content, 100) == count_scans(whole, 100) == 10
    assert loaded(content, tmp_path).size == (300, 280)


@pytest.mark.parametrize("kind", ["EXIF of a JPEG", "profiles", "texts", "international texts"])
def test_a_bomb_of_metadata_is_refused_unread(tmp_path: Path, kind: str) -> None:
    """Pillow copies all EXIF at each further piece, and unpacks 16 MB from 16 kB: an hour, and minutes."""
    jpeg, png = saved(red_over_blue(), "JPEG"), saved(red_over_blue(), "PNG")
    packed = zlib.compress(b"x" * 1000)
    block = {
        "EXIF of a JPEG": segment(0xE1, b"Exif\0\0x"),
        "profiles": png_chunk(b"iCCP", b"a\0\0" + packed),
        "texts": png_chunk(b"zTXt", b"a\0\0" + packed),
        "international texts": png_chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
    }[kind]
    whole, at = (jpeg, 2) if kind == "EXIF of a JPEG" else (png, 33)
    with pytest.raises(
        InvalidImageError, match=r"a\.jpg has more than 100 blocks of metadata; save it again"
    ):
        loaded(whole[:at] + block * 101 + whole[at:], tmp_path)


@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_a_picture_with_megabytes_of_history_in_it_loads(tmp_path: Path, after_the_pixels: bool) -> None:
    """Photoshop writes such; "no JPEG, PNG or WebP picture" was said of it."""
    text = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<rdf/>" * 1_000_000)
    whole, at = saved(red_over_blue(), "PNG"), -12 if after_the_pixels else 33
    picture = loaded(whole[:at] + png_chunk(b"iTXt", text) + whole[at:], tmp_path)
    assert is_near(picture, (150, 50), RED)


@pytest.mark.parametrize(
    "place",
    [
        "PIL.Image.open",
        "PIL.ImageFile.ImageFile.load",
        "PIL.ImageOps.exif_transpose",
        "PIL.ImageCms.profileToProfile",
        "PIL.Image.Image.paste",
    ],
)
def test_memory_that_is_full_is_not_the_pictures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Taken for a bad picture, it would end the Job without another try; or turn the picture wrongly."""
    picture = red_over_blue().convert("RGBA")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "a.png").write_bytes(saved(picture, "PNG", icc_profile=profile))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(place, fail)
    with pytest.raises(MemoryError):
        validate_pictures([tmp_path / "a.png"], ["a.png"])


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(InvalidImageError, match=r"big\.png is larger than 50 MB"):
        load_picture(path, str(path))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [
        (1, (300, 400), (150, 50)),
        (3, (300, 400), (150, 350)),
        (6, (400, 300), (350, 150)),
        (8, (400, 300), (50, 150)),
    ],
)
def test_exif_rotation_is_applied(
    tmp_path: Path, kind: str, orientation: int, size: tuple[int, int], red_at: tuple[int, int]
) -> None:
    """Phones save what the sensor saw and how to turn it (diffusers 3465)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = loaded(saved(red_over_blue(), kind, exif=exif), tmp_path)
    assert picture.size == size
    assert is_near(picture, red_at, RED)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_unknown_exif_rotation_is_ignored(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert loaded(saved(red_over_blue(), "JPEG", exif=exif), tmp_path).size == (300, 400)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.filterwarnings(
    "ignore::UserWarning:PIL.TiffImagePlugin"
)  # outside of tests only a line on stderr
def test_broken_exif_does_not_spoil_a_good_picture(tmp_path: Path, exif: bytes) -> None:
    assert loaded(saved(red_over_blue(), "JPEG", exif=exif), tmp_path).size == (300, 400)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_becomes_white(tmp_path: Path, mode: str) -> None:
    """Dropped, it shows whatever colour lies under it, mostly black."""
    picture = red_over_blue().convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 200, 300, 400))
    converted = loaded(saved(picture.convert(mode), "PNG"), tmp_path)
    assert converted.mode == "RGB"
    assert is_near(converted, (150, 350), (255, 255, 255))
    assert not is_near(converted, (150, 50), (255, 255, 255))


def test_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    assert is_near(
        loaded(saved(red_over_blue(), "PNG", transparency=BLUE), tmp_path), (150, 350), (255, 255, 255)
    )


def test_half_transparent_red_becomes_pink(tmp_path: Path) -> None:
    picture = loaded(saved(Image.new("RGBA", (300, 300), (255, 0, 0, 128)), "WEBP", lossless=True), tmp_path)
    assert is_near(picture, (150, 150), (255, 127, 127))


@pytest.mark.parametrize(
    ("picture", "kind", "top"),
    [
        (red_over_blue().convert("L"), "PNG", (87, 87, 87)),
        (red_over_blue().convert("1", dither=Image.Dither.NONE), "PNG", (0, 0, 0)),
        (red_over_blue().quantize(2), "PNG", RED),
        (red_over_blue().convert("CMYK"), "JPEG", RED),
    ],
    ids=["grey", "black-and-white", "palette", "CMYK"],
)
def test_other_colour_models_become_rgb(
    tmp_path: Path, picture: Image.Image, kind: str, top: tuple[int, int, int]
) -> None:
    converted = loaded(saved(picture, kind), tmp_path)
    assert converted.mode == "RGB"
    assert is_near(converted, (150, 50), top)


def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    """Pillow's own conversion makes white of everything above 255 of 65535."""
    ramp = np.linspace(0, 65535, 300 * 300).astype(np.uint16).reshape(300, 300)
    picture = loaded(saved(Image.fromarray(ramp), "PNG"), tmp_path)
    assert is_near(picture, (150, 150), (128, 128, 128))
    assert is_near(picture, (299, 299), (255, 255, 255))


def test_sixteen_bit_colour_loads(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + b"\xff\xff\x80\x00\x00\x00" * 300 for _ in range(300))
    content = (
        png_header(300, 300, bits=16) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    )
    assert is_near(loaded(content, tmp_path), (150, 150), (255, 128, 0))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_embedded_profile_is_applied(tmp_path: Path, kind: str) -> None:
    """Without it, the wide colours of today's phones come out pale."""
    content = saved(red_over_blue(), kind, icc_profile=profile_with_red_and_green_swapped())
    assert is_near(loaded(content, tmp_path), (150, 50), (30, 220, 30))


@pytest.mark.parametrize(
    ("picture", "kind", "profile", "expected"),
    [
        (Image.new("RGBA", (300, 300), (220, 30, 30, 255)), "PNG", "swapped", (30, 220, 30)),
        (Image.new("RGBA", (300, 300), (220, 30, 30, 0)), "PNG", "swapped", (255, 255, 255)),
        (Image.new("RGB", (300, 300), (220, 30, 30)).quantize(2), "PNG", "swapped", (30, 220, 30)),
        (Image.new("L", (300, 300), 128), "JPEG", "grey", (188, 188, 188)),
        (Image.new("LA", (300, 300), (128, 255)), "PNG", "grey", (188, 188, 188)),
        (Image.new("I;16", (300, 300), 32768), "PNG", "grey", (188, 188, 188)),
        (Image.new("CMYK", (300, 300), (255, 0, 0, 0)), "JPEG", "inks", (255, 0, 0)),
    ],
    ids=["RGBA", "transparent", "palette", "grey", "grey with alpha", "16-bit grey", "CMYK"],
)
def test_a_profile_is_applied_in_every_colour_model(
    tmp_path: Path, picture: Image.Image, kind: str, profile: str, expected: tuple[int, int, int]
) -> None:
    profiles = {
        "swapped": profile_with_red_and_green_swapped(),
        "grey": profile_of_linear_grey(),
        "inks": profile_of_inks_whose_cyan_is_red(),
    }
    content = saved(picture, kind, icc_profile=profiles[profile])
    assert is_near(loaded(content, tmp_path), (150, 150), expected)


@pytest.mark.parametrize(
    "profile",
    [b"no profile", profile_with_red_and_green_swapped()[:300], profile_of_inks_whose_cyan_is_red()],
    ids=["garbage", "cut", "of another colour model"],
)
def test_a_profile_that_cannot_be_used_is_ignored_and_said_once(
    tmp_path: Path, profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        picture = loaded(saved(red_over_blue(), "PNG", icc_profile=profile), tmp_path)
    assert is_near(picture, (150, 50), RED)
    (line,) = caplog.messages
    assert line.startswith("https://host/a.jpg has a colour profile that cannot be used")


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (300, 300), colour) for colour in (RED, BLUE)]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert is_near(loaded(content, tmp_path), (150, 150), RED)


def test_a_folder_a_device_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    for path in (
        tmp_path,
        tmp_path / "endless.jpg",
        tmp_path / "loop",
        tmp_path / "pipe",
        tmp_path / "missing",
        Path("/dev/zero"),
        tmp_path / "a\0b",
    ):
        with pytest.raises(InvalidImageError):
            load_picture(path, "x.jpg")


def test_a_file_that_may_not_be_read_is_refused_with_who_may_not_and_what_to_do(tmp_path: Path) -> None:
    """ "Permission denied" alone says neither, and in a container one is somebody else."""
    path = tmp_path / "secret.jpg"
    path.write_bytes(saved(noise(), "JPEG"))
    path.chmod(0)
    user = os.geteuid() or 65534
    with as_user(user), pytest.raises(InvalidImageError, match=rf"^secret\.jpg .* user {user}.*chmod a\+r"):
        load_picture(path, "secret.jpg")


@contextlib.contextmanager
def as_user(user: int) -> Iterator[None]:
    """root, who may read everything, becomes somebody else."""
    before = os.geteuid()
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("unseen", ["\u202e", "\u2066", "\x1b", "\n", "\x9b", "\r", "\udcff"])
def test_a_name_is_shown_with_what_cannot_be_seen_escaped(unseen: str) -> None:
    """After U+202E the rest of the line reads backwards, and exe.gpj as jpg.exe."""
    shown = picture_name(f"a{unseen}gpj.exe")
    assert shown == "a" + unseen.encode("unicode_escape").decode() + "gpj.exe"


def test_letters_of_every_script_are_shown_as_they_are() -> None:
    for name in ("Bild ü.jpg", "تصویر‌ها.jpg", "👩‍🎨.png", "9.41\u202fAM.png"):
        assert picture_name(name) == name


def test_a_very_long_name_is_shortened(tmp_path: Path) -> None:
    """A hundred of them would not fit into the termination message."""
    with pytest.raises(InvalidImageError, match=r"end\.jpg is empty") as raised:
        loaded(b"", tmp_path, name="https://host/" + "x" * 4000 + "end.jpg")
    assert len(str(raised.value)) < 250


def test_all_bad_pictures_are_reported_at_once_in_order(tmp_path: Path) -> None:
    """One a try would take a person seven tries."""
    (tmp_path / "good").write_bytes(saved(noise(), "PNG"))
    (tmp_path / "bad").write_bytes(b"text")
    names = ["a.jpg", "good.png", "b.jpg", "c.jpg", "d.jpg", "e.jpg", "f.jpg", "g.jpg"]
    paths = [tmp_path / ("good" if name == "good.png" else "bad") for name in names]
    with pytest.raises(InvalidImageError) as raised:
        validate_pictures(paths, names)
    parts = str(raised.value).split("; ")
    assert [part.split()[0] for part in parts if "JPEG" in part] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
        "d.jpg",
        "e.jpg",
    ]
    assert parts[-1] == "and 2 more pictures cannot be used"


def test_good_pictures_come_back_in_order_and_fitted(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path)
    pictures = validate_pictures(
        paths, [path.name for path in paths], fit=lambda picture: square(picture, 64)
    )
    assert [picture.size for picture in pictures] == [(64, 64)] * 10
    alone = [square(load_picture(path, path.name), 64) for path in paths]
    assert [picture.tobytes() for picture in pictures] == [picture.tobytes() for picture in alone]


def test_square_takes_the_middle() -> None:
    picture = Image.new("RGB", (900, 300), BLUE)
    picture.paste(RED, (300, 0, 600, 300))
    cropped = square(picture)
    assert cropped.size == (512, 512)
    assert all(is_near(cropped, at, RED) for at in ((5, 5), (506, 506), (256, 256)))


def test_a_folder_gives_its_pictures_by_name_and_nothing_else(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c.webp", "d.jpeg", "e.jfif", "f.jpe"]
    for name in (*names, "a.txt", "notes.gif", "._a.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in images_in_folder(tmp_path)] == names


def test_pictures_that_a_folder_has_and_that_are_not_taken_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten of an iPhone's pictures were left out without a word, and the training was of the other two."""
    names = ("a.HEIC", "b.gif", "c.avif", "d\u202e.tiff", "f.bmp", "g.heif", "h.tif")
    for name in (*names, "z.jpg", "a.txt", ".hidden.heic", "lora_weights.safetensors", "metrics.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "e.jpg").symlink_to("nowhere")
    (tmp_path / "folder.gif").mkdir()
    assert [path.name for path in images_in_folder(tmp_path)] == ["z.jpg"]
    (line,) = caplog.messages
    assert line.startswith(
        "8 pictures are left out: a.HEIC, b.gif, c.avif, d\\u202e.tiff, e.jpg (a broken link), and 3 more. "
        "Only files that end in .jfif, .jpe,"
    )


def test_of_a_folder_of_pictures_and_their_captions_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.jpg", "a.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    images_in_folder(tmp_path)
    assert not caplog.messages


def test_a_folder_without_pictures_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    """Elsewhere "no data found" ends with success."""
    (tmp_path / "a.txt").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "a.txt"):
        with pytest.raises(InvalidImageError):
            images_in_folder(folder)


def test_the_sample_pictures_are_the_same_every_time_and_as_varied_as_uploads(tmp_path: Path) -> None:
    paths = draw_pictures(tmp_path / "one")
    again = draw_pictures(tmp_path / "two")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    assert [path.name for path in images_in_folder(tmp_path / "one")] == [path.name for path in paths]
    formats, shapes, turned = set(), set(), 0
    for path in paths:
        with Image.open(path) as picture:
            formats.add(picture.format)
            shapes.add(picture.size)
            turned += picture.getexif().get(0x0112, 1) != 1
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert len(shapes) >= 6
    assert turned == 1


GOOD = [
    saved(noise(260, 256), "JPEG", quality=30, progressive=True),
    saved(red_over_blue(), "PNG"),
    saved(red_over_blue(), "WEBP"),
    saved(red_over_blue().convert("CMYK"), "JPEG"),
    saved(red_over_blue().convert("P"), "PNG"),
    saved(red_over_blue(), "WEBP", icc_profile=profile_with_red_and_green_swapped()),
    saved(red_over_blue().convert("CMYK"), "JPEG", icc_profile=profile_of_inks_whose_cyan_is_red()),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good picture with some bytes changed, taken out or put in."""
    content = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(content), draw(st.sampled_from([60, 700, 10**6])))))
        content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(content)


@given(content=st.one_of(st.binary(max_size=200), damaged()))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd EXIF and the like, which is no refusal
def test_any_bytes_load_as_fair_rgb_or_are_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever else escapes would end as 70, and Kubernetes would try it three times more."""
    with contextlib.suppress(InvalidImageError):
        picture = loaded(content, tmp_path)
        assert picture.mode == "RGB"
        assert min(picture.size) >= PictureLimits().min_side
        assert len(picture.tobytes()) == picture.width * picture.height * 3
