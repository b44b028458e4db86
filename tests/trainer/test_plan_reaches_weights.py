"""What the settings and the request say reaches the weights.

Other tests show what each part makes of a value; here whole trainings show that it is given the right one. A
value that is read and goes nowhere trains another style than was asked for, without a word.
"""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer.conftest import Train, Workshop, distance
from trainer.__main__ import main


def trained(workshop: Workshop, settings: dict[str, str], **fields: object) -> dict[str, Tensor]:
    """Return a training's weights, without the file's alphas, which a setting changes by itself."""
    captioned = {"captions": ["a hill", "a lake", "a town", "a road"], **fields}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**workshop.environment, **settings}.items():
            patch.setenv(name, value)
        assert main(workshop.request(**captioned)) == 0
    weights = load_file(workshop.folder().weights)
    return {name: tensor for name, tensor in weights.items() if not name.endswith(".alpha")}


def last_epoch(workshop: Workshop) -> dict[str, Any]:
    """Return the last line of the training's figures."""
    figures: dict[str, Any] = json.loads(workshop.folder().metrics.read_text().splitlines()[-1])
    return figures


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: list[Path]
) -> dict[str, Tensor]:
    """The weights by the default settings."""
    return trained(Workshop(tmp_path_factory.mktemp("plain"), tiny_base, pictures), {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CAPTION_DROPOUT", "1"),
        ("LORA_ALPHA", "4"),
        ("LR_SCHEDULE", "constant"),
        ("MAX_GRAD_NORM", "1e-6"),
        ("MIXED_PRECISION", "bf16"),
        ("NOISE_OFFSET", "0.5"),
        ("RANDOM_FLIP", "false"),
        ("SNR_GAMMA", "0"),
        ("WARMUP_FRACTION", "0"),
        ("WEIGHT_DECAY", "1"),
    ],
)
def test_setting_that_decides_the_weights_changes_them(
    workshop: Workshop, plain: dict[str, Tensor], name: str, value: str
) -> None:
    assert distance(plain, trained(workshop, {name: value})) > 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2),
        ("captions", ["a cat"] * 4),
        ("learning_rate", 2e-4),
        ("num_epochs", 1),
        ("trigger_word", "blorp"),
    ],
)
def test_field_of_the_request_that_decides_the_weights_changes_them(
    workshop: Workshop, plain: dict[str, Tensor], name: str, value: object
) -> None:
    assert distance(plain, trained(workshop, {}, **{name: value})) > 0.01


def test_seed_decides_where_the_adapter_begins_and_what_noise_it_sees(workshop: Workshop) -> None:
    """Either alone makes other weights, too; at a rate that moves nothing each is seen by itself."""
    begins, losses = [], []
    for seed in (1, 2):
        weights = trained(workshop, {}, seed=seed, num_epochs=1, learning_rate=1e-12)
        begins.append(next(tensor for name, tensor in weights.items() if name.endswith("down.weight")))
        losses.append(last_epoch(workshop)["loss"])
    assert not torch.allclose(begins[0], begins[1])
    assert losses[0] != pytest.approx(losses[1], rel=0.01)


def test_aspect_buckets_train_pictures_in_their_own_shapes(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 192 pixels there is one bucket, the square. A batch holds pictures of one shape."""
    seen, forward = Counter[tuple[int, ...]](), UNet2DConditionModel.forward

    def see(unet: Any, latents: Tensor, *arguments: Any, **options: Any) -> Any:
        seen[tuple(latents.shape)] += 1
        return forward(unet, latents, *arguments, **options)

    monkeypatch.setattr(UNet2DConditionModel, "forward", see)
    request = workshop.request(num_epochs=1, batch_size=4)
    assert train(request, ASPECT_BUCKETS="true", RESOLUTION="192").code == 0
    assert seen == {(2, 4, 16, 32): 1, (1, 4, 32, 16): 1, (1, 4, 24, 24): 1}


def test_steps_of_larger_batches_are_counted_as_such_by_schedule_and_metadata(
    workshop: Workshop, train: Train
) -> None:
    """Of a step for each image the cosine would see the first quarter only."""
    assert train(workshop.request(num_epochs=5, batch_size=4)).code == 0
    last = last_epoch(workshop)
    assert last["step"] == 5
    # The first step climbs, the other four are half a cosine.
    assert last["learning_rate"] == pytest.approx(1e-4 * (1 + math.cos(math.pi * 3 / 4)) / 2)
    with safe_open(workshop.folder().weights, framework="pt") as file:
        metadata = file.metadata()
    names = ("ss_steps", "ss_max_train_steps", "ss_epoch", "ss_num_epochs", "ss_lr_warmup_steps")
    assert [metadata[name] for name in names] == ["5", "5", "5", "5", "1"]
