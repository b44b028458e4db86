"""Noise, targets and weights against diffusers' own scheduler and against values worked out by hand."""

import pytest
import torch
from diffusers import DDPMScheduler

from trainer.objective import make_objective

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def test_noise_and_targets_equal_those_of_diffusers(scheduler: DDPMScheduler) -> None:
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    timesteps = torch.tensor([0, 500, 999])
    epsilon = make_objective(scheduler.alphas_cumprod, "epsilon", 5.0, CPU)
    torch.testing.assert_close(
        epsilon.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    assert epsilon.target(latents, noise, timesteps) is noise
    velocity = make_objective(scheduler.alphas_cumprod, "v_prediction", 5.0, CPU)
    torch.testing.assert_close(
        velocity.target(latents, noise, timesteps), scheduler.get_velocity(latents, noise, timesteps)
    )


def test_min_snr_weights_are_those_of_the_paper() -> None:
    # alpha_bar 0.9 has SNR 9, 0.5 has 1, 0.1 has 1/9.
    alphas = torch.tensor([0.9, 0.5, 0.1])
    epsilon = make_objective(alphas, "epsilon", 5.0, CPU).weights
    torch.testing.assert_close(epsilon, torch.tensor([5 / 9, 1.0, 1.0]))
    velocity = make_objective(alphas, "v_prediction", 5.0, CPU).weights
    torch.testing.assert_close(velocity, torch.tensor([5 / 10, 1 / 2, 1 / 10]))
    assert make_objective(alphas, "epsilon", 0.0, CPU).weights.tolist() == [1, 1, 1]


def test_losses_are_weighted_mean_squares_by_image_in_float32() -> None:
    objective = make_objective(torch.tensor([0.9, 0.5]), "epsilon", 5.0, CPU)
    predicted = torch.zeros(2, 4, 1, 1, dtype=torch.float16)
    target = torch.full((2, 4, 1, 1), 300.0)  # its square, 90,000, is more than float16 holds
    losses = objective.losses(predicted, target, torch.tensor([0, 1]))
    torch.testing.assert_close(losses, torch.tensor([90_000 * 5 / 9, 90_000.0]))
