"""The lean attention is diffusers' own, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.attention import LeanAttention
from trainer.base_model import load_unet
from trainer.lora import attach_lora


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_prediction_and_gradients_are_those_of_diffusers(tiny_base: Path, size: tuple[int, int]) -> None:
    def prediction_and_gradients(*, lean: bool) -> tuple[Tensor, Tensor]:
        unet: Any = load_unet(tiny_base, torch.float32)
        if lean:
            unet.set_attn_processor(LeanAttention())
        adapter = attach_lora(unet, rank=4, alpha=32, seed=1)
        generator = torch.Generator().manual_seed(2)
        adapter.weights.normal_(std=0.05, generator=generator)
        latents = torch.randn(2, 4, *size, generator=generator)
        texts = torch.randn(2, 77, 32, generator=generator)
        predicted = unet(latents, torch.tensor([3, 600]), texts, return_dict=False)[0]
        adapter.add_gradients(predicted.square().mean())
        return predicted, adapter.gradients

    for found, expected in zip(
        prediction_and_gradients(lean=True), prediction_and_gradients(lean=False), strict=True
    ):
        assert expected.any()
        assert torch.equal(found, expected)
