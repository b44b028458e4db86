"""A training by hand: what --images names becomes a request, or a sentence that says which name cannot."""

from pathlib import Path

import pytest

from trainer.arguments import find_request, parse_arguments
from trainer.errors import InvalidImageError, UsageError
from trainer.settings import TrainerSettings


def image_paths(*images: str) -> list[str]:
    arguments = parse_arguments(["--style-id", "1", "--images", *images])
    return find_request(arguments, TrainerSettings()).image_paths


@pytest.mark.parametrize("unfit", ["\n", "\x1b", "\x7f", "\udcff"])
def test_file_whose_name_no_request_can_hold_is_named(tmp_path: Path, unfit: str) -> None:
    """ "entry 2" of a folder's hundred files is a riddle."""
    (tmp_path / "a.jpg").touch()
    (tmp_path / f"b{unfit}b.jpg").touch()
    shown = f"b{unfit}b.jpg".encode("unicode_escape").decode()
    with pytest.raises(InvalidImageError) as raised:
        image_paths(str(tmp_path))
    assert shown in str(raised.value)
    assert "rename the file" in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_hundred_pictures_are_taken_and_one_more_is_counted_in_words(tmp_path: Path) -> None:
    names = [str(tmp_path / f"{number}.jpg") for number in range(101)]
    assert image_paths(*names[:100]) == names[:100]
    with pytest.raises(UsageError, match=r"^--images has 101 pictures; at most 100 are allowed\.$"):
        image_paths(*names)


def test_captions_that_are_too_many_are_counted_without_the_checkers_own_words(tmp_path: Path) -> None:
    """ "After validation" is what pydantic says; nobody who typed --captions knows of it."""
    arguments = ["--style-id", "1", "--images", str(tmp_path / "a.jpg"), "--captions", *["a hill"] * 101]
    with pytest.raises(UsageError, match=r"captions should have at most 100 items, not 101\.$"):
        find_request(parse_arguments(arguments), TrainerSettings())
