"""The frozen base: found on the hub or in a folder, checked to be Stable Diffusion 1.5, loaded in parts."""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from trainer.errors import ConfigurationError, DownloadError, GpuFaultError

_CPU: Final = torch.device("cpu")
_CONFIGS: Final = (
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
_WEIGHTED_PARTS: Final = ("unet", "vae", "text_encoder")
_PARTS: Final = (*_WEIGHTED_PARTS, "tokenizer", "scheduler")
_FP16_UNET: Final = "unet/diffusion_pytorch_model.fp16.safetensors"
_FULL_UNET: Final = "unet/diffusion_pytorch_model.safetensors"
_OTHER_FILES: Final = (
    "model_index.json",
    "tokenizer/*",
    "text_encoder/model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    *_CONFIGS,
)


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
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they fill a pod's log with one line a second

    executor = ThreadPoolExecutor(1, thread_name_prefix="base")

    def fetch(patterns: Iterable[str]) -> Path:
        coming = executor.submit(
            snapshot_download, repository, revision=revision, allow_patterns=list(patterns)
        )
        return Path(coming.result())

    try:
        if dtype == torch.float16:  # half the bytes, and the same values after the cast
            folder = fetch((*_OTHER_FILES, _FP16_UNET))
            if (folder / _FP16_UNET).exists():
                return folder
        return fetch((*_OTHER_FILES, _FULL_UNET))
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigurationError(
            f"BASE_MODEL {repository} (revision {revision or 'main'}) is not on the hub, or needs a token "
            "(HF_TOKEN) that may read it."
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DownloadError(
            f"The base model {repository} could not be downloaded ({type(error).__name__}); check the way "
            "to the hub, or set BASE_MODEL to a folder that holds it."
        ) from error
    finally:
        # Not waited for: SIGTERM raises here, and the hub's own threads would first complete their files.
        executor.shutdown(wait=False)


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
    try:
        unet, vae, text = (json.loads((folder / name).read_text()) for name in _CONFIGS[:3])
    except ValueError as error:
        raise ConfigurationError(
            f"BASE_MODEL {folder} has a config.json that is no JSON; copy the folder again."
        ) from error
    faults = []
    if unet.get("in_channels") != 4:
        faults.append(f"its UNet takes {unet.get('in_channels')} channels, not 4")
    if unet.get("cross_attention_dim") != text.get("hidden_size"):
        faults.append("its UNet does not take its text encoder's width")
    if unet.get("use_linear_projection") or (folder / "text_encoder_2").exists():
        faults.append("its UNet is that of SD 2 or SDXL")
    if vae.get("latent_channels") != 4:
        faults.append(f"its VAE has {vae.get('latent_channels')} latent channels, not 4")
    if faults:
        raise ConfigurationError(f"BASE_MODEL {folder} is not SD 1.5: {'; '.join(faults)}.")


def _check_weights(folder: Path) -> None:
    """Raise ConfigurationError where a part has no weights, or has them only as pickled .bin files."""
    for part in _WEIGHTED_PARTS:
        if not any((folder / part).glob("*.safetensors")):
            raise ConfigurationError(
                f"The {part} of BASE_MODEL {folder} has no .safetensors file, and .bin files, which can run "
                "code, are not read; save the base as safetensors, or take one that is."
            )


def load_unet(folder: Path, dtype: torch.dtype, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen UNet in dtype; its weights go from the mapped file straight to the device."""
    has_fp16 = (folder / _FP16_UNET).exists()
    half = has_fp16 and (dtype == torch.float16 or not (folder / _FULL_UNET).exists())
    return _load(UNet2DConditionModel, folder, "unet", device, torch_dtype=dtype, variant=_variant(half))


def load_vae(folder: Path, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen VAE in float32: SD 1.5's overflows in fp16 on some pictures (sd-scripts #653)."""
    half = not (folder / "vae/diffusion_pytorch_model.safetensors").exists()
    return _load(AutoencoderKL, folder, "vae", device, torch_dtype=torch.float32, variant=_variant(half))


def load_text_encoder(folder: Path, device: torch.device = _CPU) -> nn.Module:
    """Return the frozen CLIP text encoder in float32."""
    disable_progress_bar()
    half = not (folder / "text_encoder/model.safetensors").exists()
    return _load(CLIPTextModel, folder, "text_encoder", device, dtype=torch.float32, variant=_variant(half))


def load_tokenizer(folder: Path) -> Any:
    """Return CLIP's tokenizer."""
    try:
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"BASE_MODEL {folder} has no tokenizer that can be read.") from error


def load_noise_scheduler(folder: Path) -> Any:
    """Return the DDPM scheduler with the base's betas and prediction type."""
    return DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)


def _variant(half: bool) -> str | None:
    return "fp16" if half else None


def _load(kind: Any, folder: Path, part: str, device: torch.device, **options: Any) -> nn.Module:
    try:
        model, loading = kind.from_pretrained(
            folder,
            subfolder=part,
            use_safetensors=True,
            local_files_only=True,
            device_map={"": device},
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError:
        raise
    except torch.AcceleratorError as error:
        reason = str(error).strip().partition("\n")[0]
        raise GpuFaultError(
            f"The GPU failed while the {part} was loaded ({reason}); another node may do."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigurationError(
            f"The {part} of BASE_MODEL {folder} cannot be loaded; copy the folder again."
        ) from error
    # Libraries fill such tensors with random numbers and go on.
    if missing := sorted(loading["missing_keys"]):
        raise ConfigurationError(
            f"The {part} of BASE_MODEL {folder} lacks {len(missing)} of its tensors, {missing[0]} for one; "
            "copy the folder again."
        )
    frozen: nn.Module = model.requires_grad_(False).eval()
    return frozen
