"""Sample pictures show the training and leave it alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.trainer.rig import randomize
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


def test_sheet_has_a_row_each_and_a_column_for_each_prompt(tmp_path: Path) -> None:
    rows = []
    for name, colours in (("before", ("red", "green")), ("epoch 5", ("blue", "yellow"))):
        save_row(tmp_path / f"{name}.png", [Image.new("RGB", (64, 64), colour) for colour in colours])
        rows.append((name, tmp_path / f"{name}.png"))
    compose(tmp_path / "samples.png", rows, ["a cat", "a dog on a very long walk through the hills"])
    with Image.open(tmp_path / "samples.png") as sheet:
        right, bottom = sheet.width - 32, sheet.height - 32
        pixels = [
            sheet.getpixel(at) for at in ((right - 64, bottom - 64), (right, bottom - 64), (right, bottom))
        ]
    assert pixels == [(255, 0, 0), (0, 128, 0), (255, 255, 0)]
