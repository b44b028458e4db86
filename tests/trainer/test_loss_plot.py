"""loss.png shows the losses and where they go."""

from pathlib import Path

import pytest
from PIL import Image

from trainer.loss_plot import loss_figure, plot_loss, running_mean
from trainer.metrics import EpochMetrics

LIGHT, DARK = (0x9E, 0xCA, 0xE1), (0x08, 0x51, 0x9C)
"""The colours of the losses and of their running mean."""
PLOT = (100, 40, 790, 400)
"""The part of the picture inside the axes."""


def epochs(losses: list[float]) -> list[EpochMetrics]:
    return [
        EpochMetrics(number, number, loss, 1.0, 1e-4, 0, 2.5, 100) for number, loss in enumerate(losses, 1)
    ]


def ink(path: Path, colour: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Return where the plot has nearly this colour, from left to right."""
    with Image.open(path) as picture:
        assert picture.size == (800, 450)
        plot = picture.convert("RGB").crop(PLOT)
    return [
        (x, y)
        for x in range(plot.width)
        for y in range(plot.height)
        if all(abs(a - b) < 16 for a, b in zip(plot.getpixel((x, y)), colour, strict=True))  # type: ignore[arg-type]
    ]


def height(points: list[tuple[int, int]]) -> int:
    return max(y for _, y in points) - min(y for _, y in points)


def test_running_mean_is_that_of_the_losses_so_far_with_the_newest_counting_most() -> None:
    assert running_mean([]) == []
    assert running_mean([0.3]) == [pytest.approx(0.3)]
    assert running_mean([0.2] * 50) == pytest.approx([0.2] * 50)
    assert running_mean([1.0, 2.0, 4.0], weight=0.5) == pytest.approx([1, 2.5 / 1.5, 5.25 / 1.75])
    assert running_mean([1.0] * 100 + [0.0] * 7)[-1] == pytest.approx(0.9**7, rel=1e-3)


def test_plot_shows_every_loss_and_a_mean_that_jumps_less(tmp_path: Path) -> None:
    plot_loss(epochs([0.1, 0.3] * 10), tmp_path / "loss.png")
    losses, mean = ink(tmp_path / "loss.png", LIGHT), ink(tmp_path / "loss.png", DARK)
    top, bottom = min(y for _, y in losses), max(y for _, y in losses)
    turns = [y for _, y in losses if y in (top, bottom)]
    assert turns.count(top) >= 10
    assert turns.count(bottom) >= 10
    assert height(losses) > 300
    assert 0 < height([(x, y) for x, y in mean if x > 200]) < 100


def test_plot_of_falling_losses_falls(tmp_path: Path) -> None:
    """Both lines from the upper left to the lower right, and over the whole width."""
    plot_loss(epochs([1 / number for number in range(1, 31)]), tmp_path / "loss.png")
    for colour in (LIGHT, DARK):
        points = ink(tmp_path / "loss.png", colour)
        assert points[-1][0] - points[0][0] > 600
        assert points[-1][1] - points[0][1] > 150


@pytest.mark.parametrize("count", [1, 2, 3, 5, 100])
def test_ticks_stand_at_whole_epochs(count: int) -> None:
    """A plot of five epochs had ticks at 1.5 and 2.5."""
    figure = loss_figure(epochs([0.1 + 0.01 * number for number in range(count)]))
    figure.canvas.draw()
    axis = figure.axes[0].xaxis
    low, high = figure.axes[0].get_xlim()
    labels = [
        text.get_text()
        for tick, text in zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        if low <= tick <= high
    ]
    assert labels
    assert all(label.isdecimal() for label in labels)


def test_plot_of_no_epochs_is_a_picture_too(tmp_path: Path) -> None:
    """A crash may have cost all the figures; that is no reason to end with a traceback."""
    plot_loss([], tmp_path / "loss.png")
    assert not ink(tmp_path / "loss.png", LIGHT)
