"""Whether a base's configurations are those of Stable Diffusion 1.x, as this trainer computes it."""

from collections.abc import Mapping
from typing import Any, Final

TEXT_LENGTH: Final = 77
"""Tokens of a caption (CLIP)."""

Config = Mapping[str, Any]
"""A configuration in the diffusers layout; what is absent has diffusers' or transformers' default."""

_UNET_DEFAULTS: Final[Config] = {
    "out_channels": 4,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    # trainer.attention leaves out what SD 1.x does not use of diffusers' attention.
    "dual_cross_attention": False,
    "only_cross_attention": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "upcast_attention": False,
    "attention_type": "default",
    "dropout": 0.0,
    # The loop gives the UNet latents, a timestep and texts, and nothing else.
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "resnet_time_scale_shift": "default",
}
_UNET_BLOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
_TIMESTEPS: Final = 1000
_PREDICTIONS: Final = ("epsilon", "v_prediction")


def architecture_faults(unet: Config, vae: Config, text: Config, scheduler: Config) -> list[str]:
    """Return what keeps the base from being trained, each as "its UNet ..."; empty if nothing does."""
    return [*_unet_faults(unet, text), *_other_faults(vae, text, scheduler)]


def _unet_faults(unet: Config, text: Config) -> list[str]:
    faults = []
    if unet.get("in_channels") != 4:
        faults.append(f"its UNet takes {unet.get('in_channels')} channels, not 4")
    if unet.get("cross_attention_dim") != text.get("hidden_size"):
        faults.append("its UNet does not take its text encoder's width")
    if unet.get("use_linear_projection"):
        faults.append("its UNet is that of SD 2 or SDXL")
    for name, default in _UNET_DEFAULTS.items():
        value = unet.get(name)
        if value and value != default:  # some configurations have null or false for a default
            faults.append(f"its UNet has {name} {value}")
    for name, known in _UNET_BLOCKS.items():
        blocks = unet.get(name, [])
        others = [block for block in blocks if block not in known] if isinstance(blocks, list) else [blocks]
        if others:
            faults.append(f"its UNet has {others[0]} among its {name}")
    return faults


def _other_faults(vae: Config, text: Config, scheduler: Config) -> list[str]:
    faults = []
    if vae.get("latent_channels") != 4:
        faults.append(f"its VAE has {vae.get('latent_channels')} latent channels, not 4")
    if not isinstance(vae.get("scaling_factor", 0.18215), int | float):
        faults.append("its VAE's scaling_factor is no number")
    if text.get("max_position_embeddings", TEXT_LENGTH) != TEXT_LENGTH:
        faults.append(f"its text encoder does not read {TEXT_LENGTH} tokens")
    if scheduler.get("num_train_timesteps", _TIMESTEPS) != _TIMESTEPS:
        faults.append(f"its scheduler does not have {_TIMESTEPS} timesteps")
    prediction = scheduler.get("prediction_type", _PREDICTIONS[0])
    if prediction not in _PREDICTIONS:
        faults.append(f"its scheduler has the prediction_type {prediction}, not {' or '.join(_PREDICTIONS)}")
    return faults
