"""What exactly is trained: a request's own values over the settings', and the fingerprint of both."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from job_contract.request import TrainingRequest
from trainer.settings import LrSchedule, TrainerSettings


@dataclass(frozen=True)
class TrainingPlan:
    """Every value that decides the weights, beside the pictures and captions. Units as in TrainerSettings."""

    base_model: str
    base_model_revision: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    lr_schedule: LrSchedule
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    lora_rank: int
    lora_alpha: float
    snr_gamma: float
    noise_offset: float
    caption_dropout: float
    resolution: int
    aspect_buckets: bool
    random_flip: bool
    mixed_precision: str


def make_plan(request: TrainingRequest, settings: TrainerSettings) -> TrainingPlan:
    """Return the plan; what the request leaves open the settings decide."""
    chosen = settings.model_dump(include=set(TrainingPlan.__dataclass_fields__))
    for name in ("learning_rate", "batch_size", "seed"):
        if getattr(request, name) is not None:
            chosen[name] = getattr(request, name)
    return TrainingPlan(**chosen, epochs=request.num_epochs)


def training_fingerprint(request: TrainingRequest, plan: TrainingPlan) -> str:
    """Return a hash that two runs share if and only if they are the same training.

    A presigned URL's query changes with every signing, so it does not count. A local picture counts by
    its size and time of change: who edits one and trains again means another training.
    """
    what = {
        "plan": asdict(plan),
        "request": request.model_dump(include={"style_id", "task_id", "captions", "trigger_word"}),
        "images": [_identity(path) for path in request.image_paths],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _identity(image_path: str) -> list[str | int]:
    if "://" in image_path:
        return [image_path.partition("?")[0]]
    try:
        status = Path(image_path).stat()
    except OSError:
        return [image_path]  # the loading of the pictures names what is wrong with it
    return [image_path, status.st_size, status.st_mtime_ns]
