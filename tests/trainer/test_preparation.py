"""From pictures and a base to a UNet and encoded examples, and nothing else in memory."""

import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from job_contract.request import TrainingRequest
from trainer.base_model import load_text_encoder, load_vae
from trainer.device import find_device
from trainer.examples import Latents, encode_pictures, encode_texts
from trainer.interrupt import Interrupt, StopRequested
from trainer.pictures import ComingPictures
from trainer.plan import make_plan
from trainer.preparation import Prepared, prepare
from trainer.settings import TrainerSettings


def prepared(base: Path, pictures: list[Path], folder: Path, interrupt: Interrupt) -> Prepared:
    request = TrainingRequest(style_id=1, image_paths=[str(path) for path in pictures])
    plan = make_plan(request, TrainerSettings(resolution=64))
    device = find_device("no", require_cuda=False, deterministic=True)
    with ComingPictures(request, plan, folder, interrupt) as coming:
        return prepare(coming, plan, [], base, device, interrupt)


def test_vae_and_text_encoder_leave_memory(
    tiny_base: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Together 0.8 GB; the text encoder's half is gone before the VAE needs room."""
    loaded: list[weakref.ref[nn.Module]] = []

    def watched(load: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
        model = load(*arguments)
        loaded.append(weakref.ref(model))
        return model

    def alive() -> list[str]:
        return [type(model).__name__ for reference in loaded if (model := reference())]

    def encode(*arguments: Any, **options: Any) -> list[Latents]:
        assert alive() == ["AutoencoderKL"]
        return encode_pictures(*arguments, **options)

    monkeypatch.setattr("trainer.preparation.load_vae", partial(watched, load_vae))
    monkeypatch.setattr("trainer.preparation.load_text_encoder", partial(watched, load_text_encoder))
    monkeypatch.setattr("trainer.preparation.encode_pictures", encode)
    ready = prepared(tiny_base, pictures, tmp_path / "downloads", Interrupt())
    assert len(ready.examples.latents) == len(pictures)
    assert len(loaded) == 2
    assert alive() == []


def test_signal_that_a_library_swallowed_ends_the_encoding(
    tiny_base: Path, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred pictures may take longer than the grace period."""
    interrupt = Interrupt()

    def encode(*arguments: Any) -> Tensor:
        interrupt.event.set()
        return encode_texts(*arguments)

    monkeypatch.setattr("trainer.preparation.encode_texts", encode)
    with pytest.raises(StopRequested):
        prepared(tiny_base, pictures, tmp_path / "downloads", interrupt)
