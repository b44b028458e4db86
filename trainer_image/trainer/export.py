"""The finished file: one LoRA in the layout that diffusers, sd-scripts, ComfyUI and A1111 all read.

That is kohya's: keys `lora_unet_<layer>.lora_down.weight` and `.lora_up.weight`, and for each layer a
float32 scalar `.alpha`. A loader that finds no alpha takes alpha = rank, an eighth of what was trained;
diffusers' own layout keeps alpha in the header only, where the others do not look. And a
`lora_adapter_metadata` header beside .alpha makes diffusers refuse the file, so there is none.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainer.errors import StorageError, TrainingError
from trainer.plan import TrainingPlan
from trainer.style_folder import write_atomically

_PREFIX: Final = "lora_unet_"


@dataclass(frozen=True)
class TrainingFacts:
    """What the metadata says beside the plan."""

    style_id: str
    trigger_word: str | None
    captions: list[str]
    steps: int
    images: int
    prediction_type: str
    precision: str
    """fp16, bf16 or no: of the base, whatever MIXED_PRECISION=auto stood for."""
    loss: float
    fingerprint: str
    base_identity: str
    finished_at: str
    """ISO 8601, UTC."""


def kohya_tensors(layers: dict[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    """Return the file's tensors for layers' down [rank, in] and up [out, rank], float32 on the CPU."""
    tensors = {}
    for name, (down, up) in layers.items():
        key = _PREFIX + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = down.detach().float().cpu().contiguous()
        tensors[f"{key}.lora_up.weight"] = up.detach().float().cpu().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return tensors


def make_metadata(plan: TrainingPlan, facts: TrainingFacts, body_sha256: str) -> dict[str, str]:
    """Return the header's metadata: sd-scripts' ss_* names, ModelSpec 1.0.0, and our own fingerprint."""
    name = f"style-{facts.style_id}"
    size = f"{plan.resolution}x{plan.resolution}"
    base = Path(plan.base_model).expanduser()
    tags = Counter(tag.strip() for caption in facts.captions for tag in caption.split(",") if tag.strip())
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(plan.lora_rank),
        "ss_network_alpha": str(plan.lora_alpha),
        "ss_base_model_version": "sd_v1" if facts.prediction_type == "epsilon" else "sd_v1_v",
        # Of a folder the name, as sd-scripts writes it: the path is this machine's.
        "ss_sd_model_name": base.name if base.is_dir() else plan.base_model,
        "ss_v2": "False",
        "ss_output_name": name,
        "ss_session_id": facts.fingerprint[:16],
        "ss_training_finished_at": facts.finished_at,
        "ss_learning_rate": str(plan.learning_rate),
        "ss_unet_lr": str(plan.learning_rate),
        "ss_lr_scheduler": plan.lr_schedule,
        "ss_lr_warmup_steps": str(math.ceil(plan.warmup_fraction * facts.steps)),
        "ss_optimizer": "torch.optim.adamw.AdamW",
        "ss_max_grad_norm": str(plan.max_grad_norm),
        "ss_num_train_images": str(facts.images),
        "ss_num_epochs": str(plan.epochs),
        "ss_epoch": str(plan.epochs),
        "ss_steps": str(facts.steps),
        "ss_max_train_steps": str(facts.steps),
        "ss_batch_size_per_device": str(plan.batch_size),
        "ss_total_batch_size": str(plan.batch_size),
        "ss_seed": str(plan.seed),
        "ss_mixed_precision": facts.precision,
        "ss_resolution": f"({plan.resolution}, {plan.resolution})",
        "ss_enable_bucket": str(plan.aspect_buckets),
        "ss_min_snr_gamma": str(plan.snr_gamma or None),
        "ss_noise_offset": str(plan.noise_offset or None),
        "ss_caption_dropout_rate": str(plan.caption_dropout),
        "ss_tag_frequency": json.dumps({name: tags}),
        "sshs_model_hash": body_sha256,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.date": facts.finished_at,
        "modelspec.resolution": size,
        "modelspec.prediction_type": "epsilon" if facts.prediction_type == "epsilon" else "v",
        "modelspec.hash_sha256": f"0x{body_sha256}",
        "lora_trainer.fingerprint": facts.fingerprint,
        "lora_trainer.base": facts.base_identity,
        "lora_trainer.loss": repr(facts.loss),
        "lora_trainer.epochs": str(plan.epochs),
    }
    if facts.trigger_word:
        metadata["modelspec.trigger_phrase"] = facts.trigger_word
    return metadata


def export_weights(
    path: Path, layers: dict[str, tuple[Tensor, Tensor]], plan: TrainingPlan, facts: TrainingFacts
) -> None:
    """Write the file in one atomic rename, and read it back.

    Raises:
        TrainingError: a weight is not a number.
        StorageError: the file could not be written, or what is read back is not what was written.
    """
    tensors = kohya_tensors(layers, plan.lora_alpha)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise TrainingError(
            f"{len(broken)} trained weights are not numbers, {broken[0]} first; try a lower learning_rate."
        )
    metadata = make_metadata(plan, facts, hash_of_body(save(tensors)))
    try:
        write_atomically(path, save(tensors, metadata))
    except OSError as error:
        raise StorageError(
            f"{path} could not be written ({error.strerror}); make room on the models volume. The training "
            "is kept in its checkpoint."
        ) from error
    _verify(path, tensors, metadata)


def hash_of_body(safetensors: bytes) -> str:
    """Return the SHA-256 of all that follows the header, as sd-scripts and ModelSpec count it."""
    start = 8 + int.from_bytes(safetensors[:8], "little")
    return hashlib.sha256(safetensors[start:]).hexdigest()


def _verify(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            same = file.metadata() == metadata and set(file.keys()) == set(tensors)
            same = same and all(
                torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items()
            )
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} was written but cannot be read back; check the models volume.") from error
    if not same:
        raise StorageError(f"{path} reads differently from what was written; check the models volume.")
