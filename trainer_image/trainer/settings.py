"""The trainer's settings, read once from the environment; a request's own values win over them.

Sources named below: LoRA = Hu et al. 2021 (arXiv 2106.09685); min-SNR = Hang et al. 2023 (2303.09556);
diffusers = its train_text_to_image_lora.py example; SD 1.5 = its model card.
"""

import json
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from job_contract.names import MODELS_MOUNT_DIR
from job_contract.settings import EnvironmentSettings

MixedPrecision = Literal["auto", "no", "fp16", "bf16"]
LrSchedule = Literal["cosine", "constant"]
CudaGraphs = Literal["auto", "off"]

_NO_LIST: Final = 'must be a JSON list of texts, like ["a cat", "a dog"]'


class TrainerSettings(EnvironmentSettings):
    """Field `base_model` is the variable BASE_MODEL, and so on. Lists are written as JSON."""

    # What to train on, and where the files go.
    base_model: Annotated[str, Field(min_length=1)] = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    """A hub id, or a folder in the diffusers layout; a folder never causes a download."""
    base_model_revision: str | None = None
    """A branch, tag or commit of the hub's repository; a commit makes trainings repeatable."""
    models_dir: Path = Path(MODELS_MOUNT_DIR)
    """Each style has its folder in it."""
    style_id: str | None = None
    """The style to train when neither a request nor --style-id names one."""
    s3_bucket: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]{1,255}|arn:.+)$")] | None = None
    """The finished files are copied there. Credentials and AWS_ENDPOINT_URL are boto3's own variables."""
    s3_prefix: Annotated[str, Field(pattern=r"^([^/].*/)?$")] = "models/"
    """Stands before {style_id}/ in every key; empty, or ends with a slash."""

    # The device.
    mixed_precision: MixedPrecision = "auto"
    """The number format of the frozen base; auto is fp16 on CUDA and float32 on a CPU.
    LoRA weights and optimizer state are float32 always."""
    require_cuda: bool = False
    """Fail at start, without a retry, where there is no GPU."""
    devices: Annotated[int, Field(ge=0, le=64)] = 0
    """How many devices share a training; 0 is every GPU that the process sees, and one on a CPU."""
    cuda_graphs: CudaGraphs = "auto"
    """Record a step once as a CUDA graph and repeat it, which spares the GPU its waiting for launches; auto
    does so on one GPU, in trainings of a hundred steps or more."""
    deterministic: bool = True
    """On CUDA, compute every step so that it gives the same bits again: an interrupted training then ends
    with the weights of an uninterrupted one. Off, attention's backward is faster: at batch 1 perhaps by a
    fifth of a step, in float32 and on GPUs before Ampere by more (by PyTorch's sources, not measured)."""

    # The adapter.
    lora_rank: Annotated[int, Field(ge=1, le=256)] = 4
    """LoRA section 7.2: on attention weights rank 4 does nearly all that higher ranks do."""
    lora_alpha: Annotated[float, Field(gt=0, le=4096)] = 32.0
    """The change to a weight is multiplied by alpha / rank, here 8 (LoRA section 4.1)."""

    # The optimizer.
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-4
    """The peak of the schedule (diffusers)."""
    batch_size: Annotated[int, Field(ge=1, le=100)] = 1
    """Images per optimizer step. Ten pictures give too few steps an epoch for more than one."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Part of all steps in which the rate climbs from near zero: scale 8 makes early steps large,
    and AdamW's first steps are its wildest (Liu et al. 2019, 1908.03265)."""
    lr_schedule: LrSchedule = "cosine"
    """What follows the warm-up; cosine falls to zero at the last step (diffusers' example command)."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 1e-2
    """AdamW's (diffusers)."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients longer than this are shortened to it (diffusers)."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Decides every random choice; used when the request has none."""

    # The objective.
    snr_gamma: Annotated[float, Field(ge=0)] = 5.0
    """Min-SNR weighting; 5 is the paper's choice, and 0 turns it off."""
    noise_offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Strength of the noise that is equal over a whole channel. It helps very dark and very bright styles at
    about 0.1 (crosslabs.org, Diffusion with Offset Noise) and shifts the brightness of all others: off."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Part of the images that are shown without their caption, as SD 1.5 itself was trained, so that
    classifier-free guidance goes on working."""

    # The pictures.
    resolution: Annotated[int, Field(ge=64, le=1024, multiple_of=64)] = 512
    """Pixels a side; SD 1.5 was trained at 512."""
    aspect_buckets: bool = False
    """Keep each picture's shape: crop to the nearest of several sizes with as many pixels as the square."""
    random_flip: bool = True
    """Show a picture mirrored half of the time (as diffusers' example command does). Turn it off for styles
    with writing in them."""

    # Checkpoints.
    checkpoint_every_epochs: Annotated[int, Field(ge=1)] = 10
    """What kill -9 may cost; after SIGTERM no step is lost. A checkpoint takes 10 MB."""
    checkpoints_kept: Annotated[int, Field(ge=1)] = 2
    """The newest, and an older one in case the newest is damaged."""

    # Sample pictures.
    sample_prompts: Annotated[tuple[str, ...], NoDecode, Field(max_length=8)] = (
        "a portrait of a woman",
        "a house by a lake",
    )
    """Each is a column of samples.png; the trigger word is put before it. [] draws none."""
    sample_steps: Annotated[int, Field(ge=1, le=100)] | None = None
    """Denoising steps a picture; by default 20 on CUDA and 4 on a CPU."""
    sample_guidance: Annotated[float, Field(ge=1, le=30)] = 7.5
    """Classifier-free guidance (SD 1.5's pipeline)."""
    sample_every_epochs: Annotated[int, Field(ge=0)] = 0
    """A row of samples.png every so many epochs, between before and after; 0 draws only those two. The sheet
    shows at most 12 rows; all are in checkpoints/samples/."""

    @field_validator("sample_prompts", mode="before")
    @classmethod
    def _json_list(cls, value: object) -> object:
        # Not left to pydantic-settings, whose error does not come through validation.
        try:
            texts = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise ValueError(_NO_LIST) from error
        # "a cat" is JSON, too, and would become a prompt for each of its letters.
        if not isinstance(texts, list | tuple):
            raise ValueError(_NO_LIST)
        return tuple(texts)

    @field_validator("base_model")
    @classmethod
    def _names_a_place(cls, base_model: str) -> str:
        _expanded(Path(base_model))
        return base_model

    @field_validator("models_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return _expanded(path).absolute()


def _expanded(path: Path) -> Path:
    """Return path with the home folder for a ~ at its beginning.

    Raises:
        ValueError: there is no such user, or the path is no UTF-8, which no file of results could hold.
    """
    try:
        str(path).encode()
        return path.expanduser()
    except UnicodeEncodeError as error:
        raise ValueError("is not UTF-8") from error
    except RuntimeError as error:
        raise ValueError("begins with the home folder of a user that does not exist") from error
