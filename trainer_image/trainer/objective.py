"""The diffusion objective: what noise is added, what the UNet should predict, how much each error counts."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction"]


@dataclass(frozen=True)
class Objective:
    """Tables by timestep, [T] float32, on the device of the training."""

    prediction_type: PredictionType
    signal: Tensor
    """sqrt(alpha_bar): how much of the latents is left at t (Ho et al. 2020, equation 4)."""
    sigma: Tensor
    """sqrt(1 - alpha_bar): how much noise there is at t."""
    weights: Tensor
    """How much an error at t counts."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return latents [B, 4, h, w] as noisy as they are at timesteps [B]."""
        return _at(self.signal, timesteps) * latents + _at(self.sigma, timesteps) * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the UNet should predict, [B, 4, h, w]."""
        if self.prediction_type == "epsilon":
            return noise
        return _at(self.signal, timesteps) * noise - _at(self.sigma, timesteps) * latents

    def losses(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Return each image's weighted squared error, [B] float32."""
        errors = (predicted.float() - target.float()).square().mean(dim=(1, 2, 3))
        return self.weights.index_select(0, timesteps) * errors


def make_objective(
    alphas_cumprod: Tensor, prediction_type: PredictionType, snr_gamma: float, device: torch.device
) -> Objective:
    """Build the tables from alpha_bar [T]; snr_gamma 0 weighs every timestep the same.

    Min-SNR (Hang et al. 2023, section 3.4): min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v.
    """
    alpha_bar = alphas_cumprod.double()
    snr = alpha_bar / (1 - alpha_bar)
    weights = torch.ones_like(snr)
    if snr_gamma:
        weights = snr.clamp(max=snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    return Objective(
        prediction_type,
        *(table.float().to(device) for table in (alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), weights)),
    )


def _at(table: Tensor, timesteps: Tensor) -> Tensor:
    return table.index_select(0, timesteps).view(-1, 1, 1, 1)
