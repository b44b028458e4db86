"""loss.png: the loss of every epoch, and its running mean."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.metrics import EpochMetrics
from trainer.style_folder import MADE_BY, replace_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_loss(epochs: Sequence[EpochMetrics], path: Path) -> None:
    """Draw the losses into path, 800 x 450 pixels, without a display."""
    picture = io.BytesIO()
    loss_figure(epochs).savefig(picture, format="png", metadata={"Comment": MADE_BY})
    replace_own(path, picture.getvalue())


def loss_figure(epochs: Sequence[EpochMetrics]) -> "Figure":
    """Return the plot: the losses by epoch, and their running mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    numbers = [one.epoch for one in epochs]
    axes.plot(numbers, [one.loss for one in epochs], color="#9ecae1", marker="o", markersize=3, label="epoch")
    axes.plot(numbers, running_mean([one.loss for one in epochs]), color="#08519c", label="running mean")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_title("Training loss", loc="left")
    # Of a single epoch, too: by default two whole numbers have to be in sight, or there are fractions.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)  # above, and on no line
    return figure


def running_mean(losses: Sequence[float], weight: float = 0.9) -> list[float]:
    """Return the exponential mean of the losses up to each; a diffusion loss is mostly noise."""
    means: list[float] = []
    total = norm = 0.0
    for loss in losses:
        total, norm = weight * total + loss, weight * norm + 1
        means.append(total / norm)
    return means
