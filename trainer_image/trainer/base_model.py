"""The frozen base: found on the hub or in a folder, checked to be Stable Diffusion 1.5, loaded in parts."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer.architecture import TEXT_LENGTH, architecture_faults
from trainer.base_files import WEIGHTED_PARTS, weights_file
from trainer.device import first_line, is_device_fault, is_out_of_memory
from trainer.errors import ConfigurationError, GpuFaultError
from trainer.hub import download

_CPU: Final = torch.device("cpu")
_CONFIGS: Final = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
_PARTS: Final = (*WEIGHTED_PARTS, "tokenizer", "scheduler")
_FP16_UNET: Final = "unet/diffusion_pytorch_model.fp16.safetensors"
_FULL_UNET: Final = "unet/diffusion_pytorch_model.safetensors"
_OTHER_FILES: Final = (
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    *_CONFIGS,
)
_WANTED_FILES: Final = ("model_index.json", "tokenizer/*")
_T = TypeVar("_T")


def find_base(base_model: str, revision: str | None, dtype: torch.dtype) -> Path:
    """Return the folder of the base; a hub's files come from its cache, or are downloaded into it.

    Raises:
        ConfigurationError: there is no such folder or repository, or it holds no SD 1.5.
        DownloadError: the hub does not answer.
    """
    folder = Path(base_model).expanduser()
    if not folder.is_dir():
        # A hub id has one slash and never begins like a path.
        if base_model.startswith((".", "/", "~")) or base_model.count("/") != 1:
            raise ConfigurationError(
                f"BASE_MODEL names the folder {base_model}, which does not exist; mount it, or give a hub id."
            )
        folder = _download(base_model, revision, dtype)
    _check_readable(folder)
    _check_architecture(folder)
    _check_weights(folder)
    return folder


def _download(repository: str, revision: str | None, dtype: torch.dtype) -> Path:
    if dtype == torch.float16:  # half the bytes, and the same values after the cast
        folder = download(repository, revision, _OTHER_FILES, (*_WANTED_FILES, _FP16_UNET))
        if (folder / _FP16_UNET).exists():
            return folder
    return download(repository, revision, (*_OTHER_FILES, _FULL_UNET), _WANTED_FILES)


def _check_readable(folder: Path) -> None:
    """Raise ConfigurationError where permissions keep this user from the base: its files may be root's."""
    for path in _folders_and_files(folder):
        how = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
        if not os.access(path, how, effective_ids=True):
            raise ConfigurationError(
                f"BASE_MODEL: user {os.geteuid()} has no permission to read {path}; give it with "
                f"chmod -R a+rX {folder}."
            )


def _folders_and_files(folder: Path) -> Iterator[Path]:
    """Yield the base's own folders, each before its files; which are looked for when that one can be read."""
    for part in (folder, *(folder / name for name in _PARTS)):
        if part.is_dir():
            yield part
            yield from (file for file in part.iterdir() if file.is_file())


def _check_architecture(folder: Path) -> None:
    """Raise ConfigurationError unless folder holds a text-to-image model of the SD 1.x architecture."""
    missing = [name for name in _CONFIGS if not (folder / name).is_file()]
    if missing:
        raise ConfigurationError(
            f"BASE_MODEL {folder} is not in the diffusers layout of SD 1.5: {', '.join(missing)} is missing."
        )
    faults = architecture_faults(*(_config(folder / name) for name in _CONFIGS))
    if (folder / "text_encoder_2").exists():
        faults.append("its second text encoder is that of SDXL")
    if faults:
        raise ConfigurationError(f"BASE_MODEL {folder} is not SD 1.5: {'; '.join(faults)}.")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigurationError(f"BASE_MODEL: {path} is no JSON; copy the folder again.") from error
    if not isinstance(config, dict):
        raise ConfigurationError(f"BASE_MODEL: {path} is no configuration; copy the folder again.")
    return config


def _check_weights(folder: Path) -> None:
    """Raise ConfigurationError where a part has no weights, or has them only as pickled .bin files."""
    for part in WEIGHTED_PARTS:
        if not any((folder / part).glob("*.safetensors")):
            raise ConfigurationError(
                f"The {part} of BASE_MODEL {folder} has no .safetensors file, and .bin files, which can run "
                "code, are not read; save the base as safetensors, or take one that is."
            )


def load_unet(folder: Path, dtype: torch.dtype, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen UNet in dtype; its weights go from the mapped file straight to the device."""
    half = dtype == torch.float16
    return _load(UNet2DConditionModel, folder, "unet", device, half=half, torch_dtype=dtype)


def load_vae(folder: Path, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen VAE in float32: SD 1.5's overflows in fp16 on some pictures (sd-scripts #653)."""
    return _load(AutoencoderKL, folder, "vae", device, torch_dtype=torch.float32)


def load_text_encoder(folder: Path, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen CLIP text encoder in float32."""
    disable_progress_bar()
    return _load(CLIPTextModel, folder, "text_encoder", device, dtype=torch.float32)


def load_tokenizer(folder: Path) -> Any:
    """Return CLIP's tokenizer."""
    tokenizer = _read(
        folder,
        "tokenizer",
        lambda: CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True),
    )
    # Without its files transformers makes one that knows no word, and without its settings one of any length.
    if (
        tokenizer.model_max_length != TEXT_LENGTH
        or tokenizer.unk_token_id in tokenizer("a house", add_special_tokens=False).input_ids
        or len(tokenizer) > _config(folder / "text_encoder/config.json").get("vocab_size", 49408)
    ):
        raise ConfigurationError(
            f"The tokenizer of BASE_MODEL {folder} is not whole, or not its text encoder's; copy the folder "
            "again."
        )
    return tokenizer


def load_noise_scheduler(folder: Path) -> Any:
    """Return the DDPM scheduler with the base's betas and prediction type."""
    return _read(
        folder,
        "scheduler",
        lambda: DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True),
    )


def _load(
    kind: Any, folder: Path, part: str, device: torch.device, *, half: bool = False, **options: Any
) -> nn.Module:
    is_fp16 = weights_file(folder, part, half=half).stem.endswith(".fp16")
    model, loading = _read(
        folder,
        part,
        lambda: kind.from_pretrained(
            folder,
            subfolder=part,
            variant="fp16" if is_fp16 else None,
            use_safetensors=True,
            device_map={"": device},
            output_loading_info=True,
            local_files_only=True,
            **options,
        ),
    )
    # Libraries fill such tensors with random numbers and go on.
    if missing := sorted(loading["missing_keys"]):
        raise ConfigurationError(
            f"The {part} of BASE_MODEL {folder} lacks {len(missing)} of its tensors, {missing[0]} for one; "
            "copy the folder again."
        )
    frozen: nn.Module = model.requires_grad_(False).eval()
    return frozen


def _read(folder: Path, part: str, read: Callable[[], _T]) -> _T:
    """Return what read makes of the part's files; that they are no good is the base's fault."""
    try:
        return read()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if is_device_fault(error):
            raise GpuFaultError(
                f"The GPU failed while the {part} was loaded ({first_line(error)}); another node may do."
            ) from error
        # The libraries fail on damaged files with whatever exception they happen to meet.
        raise ConfigurationError(
            f"The {part} of BASE_MODEL {folder} cannot be loaded; copy the folder again."
        ) from error
