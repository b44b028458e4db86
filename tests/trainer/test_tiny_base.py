"""The tiny base stands in for SD 1.5 in every other test, so it must be like it where that matters."""

import filecmp
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from torch.nn import functional
from transformers import CLIPTokenizer

from tiny_base import build_tiny_base


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)


def test_diffusers_loads_it_and_draws_with_it(pipeline: StableDiffusionPipeline) -> None:
    picture = pipeline("a cat", num_inference_steps=2, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 0


def test_it_has_the_128_attention_projections_of_sd_15_in_its_16_blocks(
    pipeline: StableDiffusionPipeline,
) -> None:
    """Loaders map LoRA keys by SD 1.5's block numbers; other blocks would hide a wrong key."""
    names = {
        name
        for name, _ in pipeline.unet.named_modules()
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
    }
    blocks = [f"down_blocks.{block}.attentions.{layer}" for block in range(3) for layer in range(2)]
    blocks += ["mid_block.attentions.0"]
    blocks += [f"up_blocks.{block}.attentions.{layer}" for block in (1, 2, 3) for layer in range(3)]
    assert names == {
        f"{block}.transformer_blocks.0.{attention}.{projection}"
        for block in blocks
        for attention in ("attn1", "attn2")
        for projection in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_latents_are_an_eighth_a_side_with_a_variance_near_one(pipeline: StableDiffusionPipeline) -> None:
    """The noise schedule assumes it; at a tenth of it every picture would drown in the first noise."""
    noise = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    picture = functional.interpolate(noise, size=(256, 192)) * 2 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(picture).latent_dist
    assert latents.mean.shape == (1, 4, 32, 24)
    assert 0.3 < float(latents.mean.std()) * pipeline.vae.config.scaling_factor < 3
    assert float(latents.std.max()) < 0.05


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),  # as the CLIP of OpenAI has them
        ("", []),
        ("  A PHOTO   of a Cat ", [320, 1125, 539, 320, 2368]),
    ],
)
def test_the_tokenizer_is_that_of_clip(folder: Path, text: str, tokens: list[int]) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    assert tokenizer(text).input_ids == [49406, *tokens, 49407]


def test_the_tokenizer_pads_and_cuts_at_77(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    padded = tokenizer("cat", padding="max_length").input_ids
    cut = tokenizer("cat " * 100, truncation=True).input_ids
    assert padded == [49406, 2368, *[49407] * 75]
    assert cut == [49406, *[2368] * 75, 49407]


def test_any_text_survives_the_tokenizer(folder: Path) -> None:
    """A byte missing from the vocabulary would turn every other script into end-of-text."""
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = "żółć 猫 🐈 \x7f ok"
    tokens = tokenizer(text).input_ids
    assert 49407 not in tokens[:-1]
    assert tokenizer.decode(tokens, skip_special_tokens=True).replace(" ", "") == text.replace(" ", "")


def test_building_twice_gives_the_same_bytes_and_leaves_random_numbers_alone(
    folder: Path, tmp_path: Path
) -> None:
    """Tests compare losses of different processes, each with a base of its own."""
    torch.manual_seed(7)
    build_tiny_base(tmp_path)
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(after, torch.rand(1))
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    same, different, unread = filecmp.cmpfiles(folder, tmp_path, files, shallow=False)
    assert (sorted(same), different, unread) == (files, [], [])


def test_another_seed_gives_another_base(folder: Path, tmp_path: Path) -> None:
    build_tiny_base(tmp_path, seed=1)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert not filecmp.cmp(folder / weights, tmp_path / weights, shallow=False)


def test_a_lora_lowers_the_loss(folder: Path) -> None:
    """A base on which nothing can be learned would make the demo's loss curve a flat line."""
    unet = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True).unet
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        projections = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=4, lora_alpha=32, target_modules=projections))
        weights = [weight for weight in unet.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        noise, text = torch.randn(4, 4, 8, 8), torch.randn(4, 77, 32)
        losses = []
        for _ in range(100):
            predicted = unet(noise, torch.tensor([100, 300, 600, 900]), text).sample
            loss = functional.mse_loss(predicted, noise)
            loss.backward()  # type: ignore[no-untyped-call]  # torch declares it so
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
