"""The model card is what somebody has who finds the weights: what it says must work as it stands."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from job_contract.request import TrainingRequest
from tests.trainer.conftest import Train, Workshop
from trainer.export import TrainingFacts
from trainer.loss_plot import running_mean
from trainer.metrics import MetricsFile
from trainer.model_card import model_card
from trainer.plan import TrainingPlan, make_plan
from trainer.settings import TrainerSettings

FACTS = TrainingFacts(
    style_id="42",
    trigger_word="blorp",
    captions=["blorp, a cat"],
    steps=1000,
    images=10,
    prediction_type="epsilon",
    precision="fp16",
    loss=0.0921,
    fingerprint="f",
    base_identity="b",
    finished_at="2026-01-01T00:00:00+00:00",
)
HUB_ID = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def plan(**settings: Any) -> TrainingPlan:
    request = TrainingRequest(style_id=42, image_paths=["x"], num_epochs=100)
    return make_plan(request, TrainerSettings(**{"base_model": HUB_ID, **settings}))


def card(
    plan: TrainingPlan,
    facts: TrainingFacts = FACTS,
    *,
    mean_loss: float | None = 0.1234,
    folder: bool = False,
) -> str:
    return model_card(plan, facts, mean_loss=mean_loss, base_is_folder=folder, samples="samples.png")


def front_matter(card: str) -> dict[str, str]:
    begin, lines, _ = card.split("---\n", 2)
    assert begin == ""
    return dict(line.split(": ", 1) for line in lines.splitlines())


def settings_of(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+) \| (.+) \|$", card.split("|---|---|")[1], flags=re.MULTILINE))


def snippet_of(card: str) -> str:
    [snippet] = re.findall(r"```python\n(.+?)```", card, flags=re.DOTALL)
    return str(snippet)


def test_card_says_how_each_program_applies_the_lora_at_the_strength_that_was_trained() -> None:
    """alpha 32 at rank 4 is in the file: who writes 8 once more has 64."""
    text = " ".join(card(plan()).split())
    assert "**ComfyUI**: put `lora_weights.safetensors` into `models/loras`" in text
    assert "*Load LoRA* with `strength_model` 1.0." in text
    assert "`models/Lora` as `style_42.safetensors`" in text
    assert "`blorp, a house by a lake <lora:style_42:1>`" in text
    assert "alpha 32 at rank 4" in text
    assert "their quotient, 8." in text
    assert "Put its trigger word, `blorp`, into the prompt." in text
    assert "![Before and after](samples.png)" in text


def test_card_of_a_style_without_a_trigger_word_asks_for_none() -> None:
    text = card(plan(), replace(FACTS, trigger_word=None))
    assert "It needs no trigger word." in text
    assert "`a house by a lake <lora:style_42:1>`" in text
    assert "None" not in text


def test_card_lists_every_setting_that_was_trained_with() -> None:
    trained = plan(lora_rank=8, noise_offset=0.1)
    wanted = {name: value for name, value in asdict(trained).items() if value is not None}
    assert settings_of(card(trained)) == {
        **{name.replace("_", " "): str(value) for name, value in wanted.items()},
        "steps": "1000",
    }


def test_card_gives_the_mean_of_the_loss_before_the_noise_of_the_last_epoch() -> None:
    """Of ten pictures the last epoch is ten random timesteps, and it was all that the card gave."""
    assert (
        "Loss 0.1234 as a running mean at the end, 0.0921 in the last epoch alone, which is mostly noise."
    ) in card(plan())
    assert "Loss 0.0921 in the last epoch alone, which is mostly noise." in card(plan(), mean_loss=None)


@pytest.mark.parametrize(
    ("base", "licence"),
    [
        (HUB_ID, "creativeml-openrail-m"),
        ("runwayml/stable-diffusion-v1-5", "creativeml-openrail-m"),
        ("somebody/some-model", None),
    ],
)
def test_card_names_a_hubs_base_and_the_licence_where_it_is_known(base: str, licence: str | None) -> None:
    text = card(plan(base_model=base, base_model_revision="0123abc"))
    assert front_matter(text)["base_model"] == base
    assert front_matter(text).get("license") == licence
    assert f"base = '{base}'" in snippet_of(text)
    assert ".from_pretrained(base, revision='0123abc').to(\"cuda\")" in snippet_of(text)
    assert settings_of(text)["base model"] == base


def test_card_of_a_base_in_a_folder_keeps_its_path_to_itself() -> None:
    """It stood as base_model, which is no hub's id, under a licence that nobody had looked at."""
    text = card(plan(base_model="/srv/secret/models/sd15"), folder=True)
    assert "/srv" not in text
    assert not {"base_model", "license"} & front_matter(text).keys()
    assert front_matter(text)["library_name"] == "diffusers"
    assert "base = 'sd15'  # the folder or hub id of the base that it was trained on" in snippet_of(text)
    assert settings_of(text)["base model"] == "sd15"


def test_snippet_of_a_card_draws_a_picture_with_the_lora(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, but on the CPU, in one step and of 64 pixels a side."""
    train(workshop.request(trigger_word='a "quoted" word', num_epochs=3))
    folder = workshop.folder()
    text = folder.model_card.read_text()
    means = running_mean([one.loss for one in MetricsFile(folder.metrics).read()])
    assert f"Loss {means[-1]:.4f} as a running mean at the end" in text
    assert str(tiny_base) not in text
    assert "samples.png" not in text
    (folder.root / tiny_base.name).symlink_to(tiny_base)
    monkeypatch.chdir(folder.root)
    snippet = snippet_of(text).replace('.to("cuda")', '.to("cpu")')
    small = snippet.replace("pipeline(", "pipeline(num_inference_steps=1, height=64, width=64, prompt=")
    names: dict[str, Any] = {}
    exec(small, names)
    assert names["picture"].size == (64, 64)
    scales = [
        scale
        for module in names["pipeline"].unet.modules()
        for scale in getattr(module, "scaling", {}).values()
    ]
    assert set(scales) == {8.0}
