"""What lies beside the weights shows this training: before it, in its course, and after it."""

from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import Train, Workshop
from tests.trainer.rig import Rig, randomize
from tests.trainer.sample_sheet import read_sheet, shows
from tests.trainer.test_model_card import FACTS
from trainer.finishing import Extras
from trainer.samples import Sampler
from trainer.style_folder import StyleFolder

PROMPTS = ["cat", "a dog"]


@pytest.fixture
def rig(tiny_base: Path) -> Rig:
    return Rig(tiny_base, num_epochs=4)


@pytest.fixture
def sampler(rig: Rig, tiny_base: Path) -> Sampler:
    parts = rig.parts
    texts = torch.randn(3, 77, 32, generator=torch.Generator().manual_seed(0))
    return Sampler(
        parts.unet,
        parts.adapter,
        tiny_base,
        texts[:2],
        texts[2:],
        steps=1,
        guidance=7.5,
        seed=1,
        resolution=64,
    )


@pytest.fixture
def folder(tmp_path: Path) -> StyleFolder:
    folder = StyleFolder(tmp_path, 1)
    folder.prepare()
    return folder


def test_samples_show_the_bare_base_before_and_the_lora_after(
    rig: Rig, sampler: Sampler, folder: StyleFolder
) -> None:
    """Rows that were drawn the wrong way round, or named so, passed every test."""
    adapter = rig.parts.adapter
    expected = {"before": sampler.draw(trained=False)}
    extras = Extras(folder, sampler, PROMPTS, every_epochs=3)
    for epoch in (1, 2, 3, 4):
        randomize(adapter, std=0.1 * epoch)
        extras.between_epochs(epoch)
        if epoch in (3, 4):  # the one that is due, and the last
            expected[f"epoch {epoch}"] = sampler.draw(trained=True)
    extras.finish(rig.plan, FACTS, [])
    assert extras.notes == []

    sheet = read_sheet(folder.samples, 64)
    assert len(sheet.top) == 3
    assert len(sheet.left) == 2
    for row, (name, pictures) in enumerate(expected.items()):
        assert shows(sheet.name(row), name)
        shown = [sheet.picture(row, column).tobytes() for column in (0, 1)]
        assert shown == [picture.tobytes() for picture in pictures]
    assert len({sheet.picture(row, 0).tobytes() for row in range(3)}) == 3
    for column, prompt in enumerate(PROMPTS):
        assert shows(sheet.heading(column), prompt)


def test_samples_of_a_whole_training_are_headed_by_the_prompts_with_the_trigger_word(
    workshop: Workshop, train: Train
) -> None:
    """Prompts without it draw the base's idea of a cat, and the LoRA looks as if it did nothing."""
    settings = {"SAMPLE_PROMPTS": '["a cat", "blorp on a hill"]', "SAMPLE_EVERY_EPOCHS": "1"}
    request = workshop.request(num_epochs=3, trigger_word="blorp", learning_rate=1e-2)
    outcome = train(request, **settings, RESOLUTION="128", SAMPLE_STEPS="1")
    assert outcome.code == 0, outcome.log
    sheet = read_sheet(workshop.folder().samples, 128)
    assert shows(sheet.heading(0), "blorp, a cat")
    assert shows(sheet.heading(1), "blorp on a hill")
    names = ["before", "epoch 1", "epoch 2", "epoch 3"]
    assert len(sheet.top) == len(names)
    for row, name in enumerate(names):
        assert shows(sheet.name(row), name)
    assert len({sheet.picture(row, column).tobytes() for row in range(4) for column in (0, 1)}) == 8


def test_row_that_an_interrupted_training_drew_is_not_drawn_again(
    rig: Rig, sampler: Sampler, folder: StyleFolder
) -> None:
    randomize(rig.parts.adapter, std=0.1)
    Extras(folder, sampler, PROMPTS, every_epochs=2).between_epochs(2)
    drawn = [picture.tobytes() for picture in sampler.draw(trained=True)]
    randomize(rig.parts.adapter, std=0.2)
    extras = Extras(folder, sampler, PROMPTS, every_epochs=2)
    extras.between_epochs(2)
    extras.finish(rig.plan, FACTS, [])
    sheet = read_sheet(folder.samples, 64)
    assert [sheet.picture(1, column).tobytes() for column in (0, 1)] == drawn
    assert [sheet.picture(2, column).tobytes() for column in (0, 1)] != drawn
