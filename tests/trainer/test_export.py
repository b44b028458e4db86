"""The file means in every loader what was trained: scale 8, layer by layer."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from job_contract.request import TrainingRequest
from tests.trainer.conftest import Train, Workshop
from tests.trainer.rig import randomize
from trainer.base_model import load_unet
from trainer.checkpoint import load_newest
from trainer.errors import StorageError, TrainingError
from trainer.export import TrainingFacts, export_weights, kohya_tensors, make_metadata
from trainer.lora import Adapter, attach_lora
from trainer.optimizer import learning_rates
from trainer.parts import Parts, put_together
from trainer.plan import TrainingPlan, make_plan
from trainer.settings import TrainerSettings

REQUEST = TrainingRequest(style_id=42, image_paths=["a.jpg"], num_epochs=3, trigger_word="blorp")
FACTS = TrainingFacts(
    style_id="42",
    trigger_word="blorp",
    captions=["blorp, a cat", "blorp, a dog"],
    steps=30,
    images=10,
    prediction_type="epsilon",
    precision="fp16",
    loss=0.125,
    fingerprint="f" * 64,
    base_identity="b" * 64,
    finished_at="2026-01-02T03:04:05+00:00",
)


@pytest.fixture
def plan() -> TrainingPlan:
    return make_plan(REQUEST, TrainerSettings(base_model="some/base"))


@pytest.fixture
def adapter(tiny_base: Path) -> Adapter:
    """A trained adapter: no weight is zero."""
    adapter = attach_lora(load_unet(tiny_base, torch.float32), rank=4, alpha=32, seed=1)
    randomize(adapter, std=0.02)
    return adapter


@pytest.fixture
def weights(tmp_path: Path, adapter: Adapter, plan: TrainingPlan) -> Path:
    path = tmp_path / "lora_weights.safetensors"
    export_weights(path, adapter.split(adapter.weights), plan, FACTS)
    return path


def test_diffusers_applies_scale_8_and_the_trained_change_to_every_layer(
    weights: Path, adapter: Adapter, tiny_base: Path
) -> None:
    """A loader that misses alpha applies an eighth of it, which looks like bad training (failure 7)."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipeline.load_lora_weights(weights)
    loaded = {
        name.removesuffix(".lora_A"): module
        for name, module in pipeline.unet.named_modules()
        if hasattr(module, "lora_A") and hasattr(module, "scaling")
    }
    assert set(loaded) == set(adapter.layers)
    for name, (down, up) in adapter.split(adapter.weights).items():
        layer = loaded[name]
        (active,) = layer.scaling
        assert layer.scaling[active] == 8.0
        torch.testing.assert_close(layer.get_delta_weight(active), 8 * up @ down, rtol=1e-3, atol=1e-7)


def test_half_precision_pipeline_applies_the_trained_change_to_a_thousandth(
    weights: Path, adapter: Adapter, tiny_base: Path
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True, dtype=torch.float16)
    pipeline.load_lora_weights(weights)
    for name, (down, up) in adapter.split(adapter.weights).items():
        layer = pipeline.unet.get_submodule(name)
        (active,) = layer.scaling
        delta, expected = layer.get_delta_weight(active).float(), 8 * up @ down
        assert (delta - expected).norm() / expected.norm() < 1e-3


def test_folder_loads_as_a_whole(weights: Path, tiny_base: Path) -> None:
    """Given a folder, diffusers takes the first .safetensors in it."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipeline.load_lora_weights(weights.parent)
    assert pipeline.get_active_adapters()


def test_kohya_keys_and_alphas_are_what_comfyui_and_a1111_read(weights: Path, adapter: Adapter) -> None:
    """Those two know no unet.*.lora_A keys (failure 8), and take alpha from a tensor."""
    tensors = load_file(weights)
    names = {"lora_unet_" + name.replace(".", "_") for name in adapter.layers}
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert set(tensors) == {f"{name}.{part}" for name in names for part in parts}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.alpha" in tensors
    for name in names:
        alpha = tensors[f"{name}.alpha"]
        assert (alpha.shape, alpha.dtype, alpha.item()) == (torch.Size([]), torch.float32, 32.0)
        assert tensors[f"{name}.lora_down.weight"].shape[0] == tensors[f"{name}.lora_up.weight"].shape[1] == 4


def test_metadata_say_what_was_trained_in_texts_only(weights: Path) -> None:
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "32.0",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "some/base",
        "ss_num_epochs": "3",
        "ss_epoch": "3",
        "ss_num_train_images": "10",
        "ss_steps": "30",
        "ss_seed": "42",
        "ss_output_name": "style-42",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "blorp",
        "modelspec.resolution": "512x512",
        "modelspec.date": "2026-01-02T03:04:05+00:00",
    }
    assert {name: metadata[name] for name in expected} == expected
    assert json.loads(metadata["ss_tag_frequency"]) == {"style-42": {"blorp": 2, "a cat": 1, "a dog": 1}}
    # diffusers refuses a file that has it beside .alpha tensors.
    assert "lora_adapter_metadata" not in metadata


@pytest.mark.parametrize(
    ("prediction_type", "version", "modelspec"),
    [("epsilon", "sd_v1", "epsilon"), ("v_prediction", "sd_v1_v", "v")],
)
def test_v_prediction_makes_no_sd2_of_a_base(
    plan: TrainingPlan, prediction_type: str, version: str, modelspec: str
) -> None:
    """As sd-scripts has it (library/model_util.py): programs would offer the file for SD 2 only."""
    metadata = make_metadata(plan, replace(FACTS, prediction_type=prediction_type), "")
    assert (metadata["ss_v2"], metadata["ss_base_model_version"]) == ("False", version)
    assert metadata["modelspec.prediction_type"] == modelspec


def test_warmup_in_the_metadata_is_the_schedules(plan: TrainingPlan) -> None:
    facts = replace(FACTS, steps=25)
    steps = int(make_metadata(plan, facts, "")["ss_lr_warmup_steps"])
    rates = learning_rates(1.0, facts.steps, warmup_fraction=plan.warmup_fraction, schedule="constant")
    assert steps == sum(rate < 1 for rate in rates) == 2


def test_metadata_name_a_folder_base_without_its_path(plan: TrainingPlan, tmp_path: Path) -> None:
    metadata = make_metadata(replace(plan, base_model=str(tmp_path)), FACTS, "")
    assert metadata["ss_sd_model_name"] == tmp_path.name


def test_hash_is_that_of_everything_after_the_header(weights: Path) -> None:
    content = weights.read_bytes()
    body = content[8 + int.from_bytes(content[:8], "little") :]
    with safe_open(weights, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["sshs_model_hash"] == hashlib.sha256(body).hexdigest()
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()


def test_weights_that_are_not_numbers_are_not_exported(
    tmp_path: Path, adapter: Adapter, plan: TrainingPlan
) -> None:
    adapter.weights[3] = float("nan")
    path = tmp_path / "lora.safetensors"
    with pytest.raises(TrainingError, match="not numbers"):
        export_weights(path, adapter.split(adapter.weights), plan, FACTS)
    assert not path.exists()


def test_file_that_reads_differently_is_no_success(
    tmp_path: Path, adapter: Adapter, plan: TrainingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`completed` means that the file is there and loads."""

    def write_something_else(path: Path, _content: bytes) -> None:
        save_file({"a": torch.zeros(1)}, path)

    monkeypatch.setattr("trainer.export.write_atomically", write_something_else)
    with pytest.raises(StorageError, match="reads differently"):
        export_weights(tmp_path / "lora.safetensors", adapter.split(adapter.weights), plan, FACTS)
    monkeypatch.setattr(
        "trainer.export.write_atomically", lambda path, content: path.write_bytes(content[:-9])
    )
    with pytest.raises(StorageError, match="cannot be read back"):
        export_weights(tmp_path / "lora.safetensors", adapter.split(adapter.weights), plan, FACTS)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_whole_training_exports_the_float32_weights_of_its_last_checkpoint(
    workshop: Workshop, train: Train, precision: str
) -> None:
    """The layers' own are a copy in the base's precision, which has lost every small step."""
    train(workshop.request(), MIXED_PRECISION=precision)
    with safe_open(workshop.folder().weights, framework="pt") as file:
        exported = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    newest = max(workshop.folder().checkpoints.glob("epoch-*"))
    fingerprint = json.loads((newest / "state.json").read_text())["fingerprint"]
    checkpoint = load_newest(workshop.folder().checkpoints, fingerprint)
    assert checkpoint is not None
    trained = [tensor for name, tensor in exported.items() if not name.endswith(".alpha")]
    assert len(trained) == 2 * 128
    assert torch.equal(in_order(trained), in_order([checkpoint.tensors["master"]]))


def in_order(tensors: list[Tensor]) -> Tensor:
    """Return all that is not zero, by size: a checkpoint has zeros where no layer has a weight."""
    values = torch.cat([tensor.flatten() for tensor in tensors])
    return values[values != 0].sort().values


def test_diffusers_with_the_file_computes_what_the_trainer_computed(
    workshop: Workshop, train: Train, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained at scale 1 and applied at 8, the file looked right in every respect but this one."""
    made: list[Parts] = []

    def keep(*arguments: Any) -> Parts:
        made.append(put_together(*arguments))
        return made[0]

    monkeypatch.setattr("trainer.run.put_together", keep)
    train(workshop.request(learning_rate=1e-2))
    (parts,) = made
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipeline.load_lora_weights(workshop.folder().weights)
    generator = torch.Generator().manual_seed(0)
    latents, texts = (torch.randn(shape, generator=generator) for shape in ((1, 4, 8, 8), (1, 77, 32)))

    @torch.no_grad()
    def predicted(unet: Any) -> Tensor:
        noise: Tensor = unet(latents, torch.tensor([500]), texts).sample
        return noise

    trained, loaded = predicted(parts.unet), predicted(pipeline.unet)
    parts.adapter.enable(enabled=False)
    change = trained - predicted(parts.unet)
    assert (loaded - trained).norm() < 1e-3 * change.norm()


def test_kohya_tensors_are_float32_from_half_precision_layers() -> None:
    layers = {"a.to_out.0": (torch.ones(4, 8).half(), torch.ones(8, 4).half())}
    tensors = kohya_tensors(layers, 32)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "lora_unet_a_to_out_0.lora_down.weight": torch.float32,
        "lora_unet_a_to_out_0.lora_up.weight": torch.float32,
        "lora_unet_a_to_out_0.alpha": torch.float32,
    }
