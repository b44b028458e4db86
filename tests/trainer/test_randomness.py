"""Nothing random may depend on anything but seed, epoch and image."""

from typing import Any

import pytest
import torch

from trainer.randomness import EpochDraws, Shape, draw_epoch, steps_per_epoch

SQUARE: Shape = (4, 8, 8)


def draw(seed: int = 1, epoch: int = 1, count: int = 5, **changes: Any) -> EpochDraws:
    options: dict[str, Any] = {
        "batch_size": 2,
        "timesteps": 1000,
        "random_flip": True,
        "caption_dropout": 0.5,
        **changes,
    }
    return draw_epoch(seed, epoch, [SQUARE] * count, **options)


def test_same_seed_and_epoch_draw_the_same_whatever_was_drawn_before() -> None:
    """Hidden state is what a resumed training would have lost (failure 6)."""
    first = draw(epoch=7)
    torch.manual_seed(99)
    draw(epoch=3)
    second = draw(epoch=7)
    assert first.batches == second.batches
    assert torch.equal(first.timesteps, second.timesteps)
    assert all(map(torch.equal, first.noise + first.posterior, second.noise + second.posterior))
    assert (first.flipped, first.captionless) == (second.flipped, second.captionless)


def test_what_an_image_sees_does_not_depend_on_the_batch_size() -> None:
    one, many = draw(batch_size=1), draw(batch_size=5)
    assert torch.equal(one.timesteps, many.timesteps)
    assert all(map(torch.equal, one.noise, many.noise))


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 2}])
def test_other_seed_or_epoch_draws_something_else(other: dict[str, int]) -> None:
    first, second = draw(count=20), draw(count=20, **other)
    assert not torch.equal(first.timesteps, second.timesteps)
    assert not torch.equal(first.noise[0], second.noise[0])
    assert not torch.equal(first.noise[0], first.posterior[0])
    assert first.batches != second.batches


def test_an_epoch_shows_every_image_once_and_fills_its_last_batch_with_the_rest() -> None:
    draws = draw(count=5, batch_size=2)
    assert sorted(image for batch in draws.batches for image in batch) == [0, 1, 2, 3, 4]
    assert sorted(map(len, draws.batches)) == [1, 2, 2]
    assert steps_per_epoch([SQUARE] * 5, 2) == 3


def test_images_of_one_batch_have_one_shape() -> None:
    wide: Shape = (4, 4, 16)
    shapes = [SQUARE, wide, SQUARE, wide, SQUARE]
    draws = draw_epoch(1, 1, shapes, batch_size=2, timesteps=1000, random_flip=True, caption_dropout=0.1)
    assert all(len({shapes[image] for image in batch}) == 1 for batch in draws.batches)
    assert len(draws.batches) == steps_per_epoch(shapes, 2) == 3
    assert [tuple(noise.shape) for noise in draws.noise] == shapes


def test_flips_and_dropped_captions_follow_their_settings() -> None:
    assert not any(draw(random_flip=False, count=50).flipped)
    assert 10 < sum(draw(count=50).flipped) < 40
    assert not any(draw(caption_dropout=0.0, count=50).captionless)
    assert all(draw(caption_dropout=1.0, count=50).captionless)
