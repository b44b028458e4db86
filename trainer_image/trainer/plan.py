"""What exactly is trained: a request's own values over the settings', and the fingerprints of both."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from job_contract.request import TrainingRequest
from trainer.settings import LrSchedule, TrainerSettings

_SIGNINGS: Final = {
    "x-amz-signature": re.compile("x-amz-.*"),
    "x-goog-signature": re.compile("x-goog-.*"),
    "signature": re.compile(  # S3 and Google of old, CloudFront, Alibaba
        "signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|ossaccesskeyid|"
        "security-token|x-amz-security-token"
    ),
    "sig": re.compile(  # Azure
        "s(ig|v|s|rt|r|p|t|e|pr|ip|i|dd|es|cid|aoid|uoid|duoid|koid|ktid|kt|ke|ks|kv|kdutid)"
    ),
}
"""By the parameter that holds a presigned URL's signature, in lower case: the names that come with it."""


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
    """Return a hash that two runs share only if they are the same training; needs no picture.

    Local pictures, and the captions beside them, count by their sizes and times of change: who edits one
    and trains again means another training. Of a URL everything counts but a signature that is known as
    one: an unknown parameter may be all that tells two pictures apart. Where one makes a finished training
    look like another, no step is repeated: its last checkpoint goes by the pictures themselves.
    """
    images = [_identity(path, captioned=request.captions is not None) for path in request.image_paths]
    return _hash(request, plan, images)


def checkpoint_fingerprint(
    request: TrainingRequest, plan: TrainingPlan, *, examples: str, base: str, weights: int
) -> str:
    """Return a hash that two runs share if and only if one can go on from the other's checkpoint.

    Args:
        examples: the fingerprint of the fitted pictures and their captions, wherever they come from.
        base: the identity of the base.
        weights: of the adapter, which an older trainer had in another layout.
    """
    return _hash(request, plan, [examples, base, weights])


def _hash(request: TrainingRequest, plan: TrainingPlan, trained_on: list[Any]) -> str:
    what = {
        "plan": asdict(plan),
        "request": request.model_dump(include={"style_id", "task_id", "captions", "trigger_word"}),
        "trained_on": trained_on,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _identity(image_path: str, *, captioned: bool) -> list[str | int]:
    if image_path.lower().startswith(("http://", "https://")):
        url, _, query = image_path.partition("?")
        return [url, *_without_signature(query.split("&"))]
    if "://" in image_path:
        return [image_path]
    identity: list[str | int] = [image_path]
    path = Path(image_path)
    for caption in (False,) if captioned else (False, True):
        with suppress(OSError, ValueError):  # loading the pictures says what is wrong with it
            file = path.with_suffix(".txt") if caption else path
            status = file.stat()
            identity += [file.suffix, status.st_size, status.st_mtime_ns]
    return identity


def _without_signature(parameters: list[str]) -> list[str]:
    names = [parameter.partition("=")[0].lower() for parameter in parameters]
    signings = [pattern for name, pattern in _SIGNINGS.items() if name in names]
    return [
        parameter
        for name, parameter in zip(names, parameters, strict=True)
        if not any(pattern.fullmatch(name) for pattern in signings)
    ]
