"""Sample pictures show the training and leave it alone."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.trainer.rig import randomize
from tests.trainer.sample_sheet import SampleSheet, read_sheet, shows
from trainer.base_model import load_unet
from trainer.lora import Adapter, attach_lora
from trainer.samples import Sampler, compose, save_row


@pytest.fixture
def unet(tiny_base: Path) -> Any:
    return load_unet(tiny_base, torch.float32)


@pytest.fixture
def adapter(unet: Any) -> Adapter:
    return attach_lora(unet, rank=4, alpha=32, seed=1)


@pytest.fixture
def sampler(unet: Any, adapter: Adapter, tiny_base: Path) -> Sampler:
    texts = torch.randn(3, 77, 32, generator=torch.Generator().manual_seed(0))
    return Sampler(
        unet, adapter, tiny_base, texts[:2], texts[2:], steps=2, guidance=7.5, seed=1, resolution=64
    )


def test_before_and_after_differ_by_the_adapter_alone(sampler: Sampler, adapter: Adapter) -> None:
    untrained = [picture.tobytes() for picture in sampler.draw(trained=True)]
    assert [picture.tobytes() for picture in sampler.draw(trained=False)] == untrained
    randomize(adapter, std=0.1)
    assert [picture.tobytes() for picture in sampler.draw(trained=False)] == untrained
    assert [picture.tobytes() for picture in sampler.draw(trained=True)] != untrained
    assert untrained[0] != untrained[1]


def test_sampling_casts_and_freezes_nothing_of_the_unet(
    sampler: Sampler, unet: Any, adapter: Adapter
) -> None:
    """Where it did, the next step crashed (failure 2)."""

    def state() -> list[tuple[str, torch.dtype, bool]]:
        return [(name, one.dtype, one.requires_grad) for name, one in unet.named_parameters()]

    before, weights = state(), adapter.weights.clone()
    sampler.draw(trained=False)
    assert state() == before
    assert torch.equal(adapter.weights, weights)
    predicted = unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 77, 32)).sample
    adapter.add_gradients(predicted.sum())
    assert adapter.gradients.any()


def test_adapter_is_on_again_when_sampling_fails(
    sampler: Sampler, adapter: Adapter, unet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps after it would train nothing."""

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(unet, "forward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        sampler.draw(trained=False)
    assert not any(layer.disable_adapters for layer in adapter.layers.values())


COLOURS = ["red", "green", "blue", "purple", "black", "orange"]


def sheet_of(folder: Path, names: list[str], prompts: list[str], side: int = 64) -> SampleSheet:
    """Compose a sheet in whose every row and column the colours begin with another one."""
    rows = []
    for number, name in enumerate(names):
        colours = [COLOURS[(number + column) % len(COLOURS)] for column in range(len(prompts))]
        row = folder / f"{number}.png"
        save_row(row, [Image.new("RGB", (side, side), colour) for colour in colours])
        rows.append((name, row))
    compose(folder / "samples.png", rows, prompts)
    return read_sheet(folder / "samples.png", side)


def test_sheet_has_a_row_each_and_a_column_for_each_prompt(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, ["before", "epoch 5"], ["a cat", "a dog"])
    colours = [[sheet.picture(row, column).getcolors() for column in (0, 1)] for row in (0, 1)]
    red, green, blue = ([(64 * 64, colour)] for colour in ((255, 0, 0), (0, 128, 0), (0, 0, 255)))
    assert colours == [[red, green], [green, blue]]
    assert shows(sheet.name(0), "before")
    assert shows(sheet.name(1), "epoch 5")
    assert shows(sheet.heading(0), "a cat")
    assert shows(sheet.heading(1), "a dog")


def test_pictures_of_a_sheet_do_not_touch(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path, ["before", "epoch 5", "epoch 10"], ["a cat", "a dog", "a hill"])
    assert sheet.gaps == [4] * 4


@pytest.mark.parametrize("side", [64, 128, 512])
@pytest.mark.parametrize(
    "prompt",
    [
        "blorp, a portrait of a woman",
        "WWWWWWWW, WWWWWWWWWWWWWWWWW WWWWW, WWWWWWWWWWWWW WWWW",
        "blorp, " + "a dog on a very long walk through the hills " * 20,
    ],
    ids=["usual", "wide", "long"],
)
def test_heading_stays_above_its_own_picture(tmp_path: Path, side: int, prompt: str) -> None:
    """Without a measure it ran into the next one's, and at the sheet's edge it was cut through a letter."""
    sheet = sheet_of(tmp_path, ["before"], [prompt, prompt], side)
    above = sheet.image.crop((0, 0, sheet.image.width, sheet.top[0]))
    for column in (0, 1):
        left = sheet.left[column]
        above.paste("white", (left - 1, 0, left + side, sheet.top[0]))  # a comma begins a pixel before it
    assert above.getcolors() == [(above.width * above.height, (255, 255, 255))]
    assert sheet.heading(0).tobytes().strip(b"\xff")
    assert sheet.top[0] < 64


def test_headings_of_small_pictures_say_more_than_the_trigger_word(tmp_path: Path) -> None:
    prompts = ["blorp, a portrait", "blorp, a house"]
    sheet = sheet_of(tmp_path, ["before"], prompts)
    assert sheet.heading(0).tobytes() != sheet.heading(1).tobytes()


def test_sheet_of_hundreds_of_epochs_stays_one_that_can_be_opened(tmp_path: Path) -> None:
    """500 rows of 512 pixels are 256,000 pixels; the first and the last are what is looked for."""
    names = ["before", *(f"epoch {number}" for number in range(1, 501))]
    sheet = sheet_of(tmp_path, names, ["a cat"])
    assert len(sheet.top) == 12
    shown = [next(name for name in names if shows(sheet.name(row), name)) for row in range(12)]
    numbers = [int(name.removeprefix("epoch ").replace("before", "0")) for name in shown]
    assert numbers[0] == 0
    assert numbers[-1] == 500
    steps = [after - before for before, after in pairwise(numbers)]
    assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13])
def test_sheet_shows_all_rows_of_a_dozen(tmp_path: Path, count: int) -> None:
    names = [f"epoch {number}" for number in range(count)]
    sheet = sheet_of(tmp_path, names, ["a cat"])
    assert len(sheet.top) == min(count, 12)
    assert shows(sheet.name(0), names[0])
    assert shows(sheet.name(-1), names[-1])
