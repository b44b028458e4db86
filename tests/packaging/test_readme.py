"""README.md is true of the code where that can be told."""

from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("folder", ["dispatcher", "trainer_image/trainer"])
def test_every_module_has_its_place_in_the_reading_order(folder: str) -> None:
    """A newcomer finds a file by what the page says of it; of backends/ the main ones are enough."""
    order = README.partition("## The code, in reading order")[2]
    modules = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in order.split()} == set()


def test_no_module_in_the_reading_order_is_gone() -> None:
    order = README.partition("## The code, in reading order")[2].partition("```\n\n")[0]
    named = {word for word in order.split() if word.endswith(".py") and "*" not in word}
    there = {
        path.name for folder in ("dispatcher", "trainer_image") for path in (ROOT / folder).rglob("*.py")
    }
    assert named - there == set()


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    words = README.replace("`", " ").replace("(", " ").split()
    targets = {after for word, after in pairwise(words) if word == "make"}
    named = {target.strip(".,;:)") for target in targets}
    assert {target for target in named if f"\n{target}:" not in makefile} == set()
