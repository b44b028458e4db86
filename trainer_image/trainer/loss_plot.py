"""loss.png: the loss of every epoch, and its running mean."""

import io
from collections.abc import Sequence
from pathlib import Path

from trainer.metrics import EpochMetrics
from trainer.style_folder import MADE_BY, replace_own


def plot_loss(epochs: Sequence[EpochMetrics], path: Path) -> None:
    """Draw the losses into path, 800 x 450 pixels, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = [one.epoch for one in epochs]
    axes.plot(numbers, [one.loss for one in epochs], color="#9ecae1", marker="o", markersize=3, label="epoch")
    axes.plot(numbers, running_mean([one.loss for one in epochs]), color="#08519c", label="running mean")
    axes.set(xlabel="epoch", ylabel="loss", title="Training loss")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Comment": MADE_BY})
    replace_own(path, picture.getvalue())


def running_mean(losses: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential mean of the losses up to each; a diffusion loss is mostly noise."""
    means: list[float] = []
    total = norm = 0.0
    for loss in losses:
        total, norm = weight * total + loss, weight * norm + 1
        means.append(total / norm)
    return means
