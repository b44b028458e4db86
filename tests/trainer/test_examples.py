"""Pictures and captions are encoded once, in float32, and into numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from trainer.base_model import load_text_encoder, load_tokenizer, load_unet, load_vae
from trainer.errors import TrainingError
from trainer.examples import (
    Examples,
    Latents,
    encode_pictures,
    encode_texts,
    fingerprint_of,
)
from trainer.randomness import draw_epoch

CPU = torch.device("cpu")


def gradient(width: int = 64, height: int = 64) -> Image.Image:
    """A picture that is not its own mirror image."""
    return Image.linear_gradient("L").rotate(90).resize((width, height)).convert("RGB")


def encode(vae: Any, picture: Image.Image, *, flip: bool) -> Latents:
    (latents,) = encode_pictures(vae, [picture], flip=flip, device=CPU, check=lambda: None)
    return latents


def test_latents_are_the_vaes_distribution_times_its_scale(tiny_base: Path) -> None:
    vae: Any = load_vae(tiny_base)
    latents = encode(vae, gradient(), flip=False)
    pixels = torch.tensor(list(gradient().tobytes()), dtype=torch.float32).view(1, 64, 64, 3)
    expected = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    torch.testing.assert_close(latents.mean[0], expected.mean[0] * 0.18215, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.deviation[0], expected.std[0] * 0.18215, atol=1e-4, rtol=1e-4)
    assert latents.mean[0].shape == (4, 8, 8)
    assert latents.mean[1] is latents.mean[0]


def test_mirrored_latents_are_those_of_the_mirrored_picture(tiny_base: Path) -> None:
    vae: Any = load_vae(tiny_base)
    latents = encode(vae, gradient(), flip=True)
    mirrored = encode(vae, gradient().transpose(Image.Transpose.FLIP_LEFT_RIGHT), flip=False)
    assert torch.equal(latents.mean[1], mirrored.mean[0])
    assert not torch.equal(latents.mean[1], latents.mean[0])


def test_vae_and_text_encoder_are_float32_even_from_a_base_that_is_stored_in_half(
    tiny_base: Path, tmp_path: Path
) -> None:
    """In fp16 SD 1.5's VAE overflows on some pictures (failure 11)."""
    half: Any = StableDiffusionPipeline.from_pretrained(tiny_base, dtype=torch.float16)
    half.save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "vae/diffusion_pytorch_model.safetensors").exists()
    for model in (load_vae(tmp_path), load_text_encoder(tmp_path), load_unet(tmp_path, torch.float32)):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_latents_that_are_not_numbers_stop_the_training(tiny_base: Path) -> None:
    """Zeroing them trains on a grey picture without a word (failure 10)."""
    vae: Any = load_vae(tiny_base)
    with torch.no_grad():
        vae.quant_conv.bias[0] = float("nan")
    with pytest.raises(TrainingError, match="image 1"):
        encode(vae, gradient(), flip=False)


def test_texts_are_cut_at_77_tokens_and_not_mixed_up(tiny_base: Path) -> None:
    encoder, tokenizer = load_text_encoder(tiny_base), load_tokenizer(tiny_base)
    texts = encode_texts(encoder, tokenizer, ["a cat", "word " * 200, ""], CPU)
    assert texts.shape == (3, 77, 32)
    alone = encode_texts(encoder, tokenizer, ["a cat"], CPU)
    torch.testing.assert_close(texts[0], alone[0])
    assert not torch.allclose(texts[0], texts[2])


def test_batch_takes_the_drawn_side_caption_and_place_in_the_distribution() -> None:
    ones = torch.ones(4, 2, 2)
    latents = [
        Latents((0 * ones, 10 * ones), (ones, 2 * ones)),
        Latents((50 * ones, 60 * ones), (ones, ones)),
    ]
    examples = Examples(latents, texts=torch.arange(3.0).view(3, 1, 1), caption_of=[0, 1], fingerprint="")
    draws = draw_epoch(1, 1, examples.shapes, batch_size=2, timesteps=9, random_flip=False, caption_dropout=0)
    draws.flipped[0] = True
    draws.captionless[1] = True
    batch, texts = examples.batch([1, 0], draws)
    torch.testing.assert_close(batch[0], 50 + draws.posterior[1])
    torch.testing.assert_close(batch[1], 10 + 2 * draws.posterior[0])
    assert texts.flatten().tolist() == [2.0, 0.0]  # no caption stands last


def test_fingerprint_tells_pictures_captions_and_their_order_apart() -> None:
    one, other = gradient(), Image.new("RGB", (64, 64), "red")
    prints = {
        fingerprint_of(pictures, captions)
        for pictures, captions in (
            ([one, other], ["a", "b"]),
            ([other, one], ["a", "b"]),
            ([one, other], ["b", "a"]),
            ([one, other], ["ab", ""]),
            ([one, one], ["a", "b"]),
        )
    }
    assert len(prints) == 5
