"""Captions come from the request, else from .txt files, and carry the trigger word once."""

from pathlib import Path

import pytest

from trainer.captions import compose_captions, with_trigger_word
from trainer.errors import InvalidImageError


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    (tmp_path / "a.txt").write_text(" a cat\non a mat \n", encoding="utf-8-sig")
    return [tmp_path / "a.jpg", tmp_path / "b.jpg"]


def test_captions_of_the_request_win_over_files(pictures: list[Path]) -> None:
    assert compose_captions(pictures, ["one", "two"], None) == ["one", "two"]


def test_captions_come_from_the_file_beside_the_picture(pictures: list[Path]) -> None:
    assert compose_captions(pictures, None, None) == ["a cat on a mat", ""]


def test_trigger_word_stands_before_the_caption_or_alone(pictures: list[Path]) -> None:
    assert compose_captions(pictures, None, "blorp") == ["blorp, a cat on a mat", "blorp"]


def test_trigger_word_is_not_said_twice() -> None:
    assert with_trigger_word("a Blorp house", "blorp") == "a Blorp house"


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("a party in a house", "art", "art, a party in a house"),
        ("a skip in the yard", "ski", "ski, a skip in the yard"),
        ("modern ART, oil", "art", "modern ART, oil"),
        ("a (b+c) of d", "b+c", "a (b+c) of d"),
        ("Blick auf Öl", "öl", "Blick auf Öl"),
    ],
)
def test_trigger_word_counts_as_said_only_as_a_whole_word(text: str, word: str, expected: str) -> None:
    """Else it is never trained, and nobody is told."""
    assert with_trigger_word(text, word) == expected


def test_long_caption_file_is_cut_between_characters(pictures: list[Path], tmp_path: Path) -> None:
    """Cut inside of one, it was refused as no UTF-8."""
    (tmp_path / "a.txt").write_text("x" + "é" * 6000, encoding="utf-8")
    assert compose_captions(pictures[:1], None, None) == ["x" + "é" * 4999]


def test_picture_whose_name_leaves_no_room_for_a_caption_file_has_none(tmp_path: Path) -> None:
    assert compose_captions([tmp_path / ("x" * 253)], None, None) == [""]


def test_caption_file_that_is_no_text_is_refused(pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidImageError, match=r"a\.txt"):
        compose_captions(pictures, None, None)
