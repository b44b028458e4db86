"""What stands beside the weights: loss.png, samples.png and the model card. None of it fails a training."""

import json
import logging
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from trainer.export import TrainingFacts
from trainer.logs import brief
from trainer.loss_plot import plot_loss, running_mean
from trainer.metrics import EpochMetrics
from trainer.model_card import model_card
from trainer.plan import TrainingPlan
from trainer.samples import Sampler, compose, save_row
from trainer.style_folder import StyleFolder, is_own, replace_own

_NOTES: Final = 5
_REASON_CHARACTERS: Final = 200
"""Both keep the notes within a termination message, which has to be short; the log has all of them whole."""

logger = logging.getLogger(__name__)


class Extras:
    """Makes the files beside the weights, and notes what could not be made."""

    def __init__(
        self, folder: StyleFolder, sampler: Sampler | None, prompts: Sequence[str], *, every_epochs: int
    ) -> None:
        self._folder = folder
        self._sampler = sampler
        self._prompts = prompts
        self._every_epochs = every_epochs
        # The settings may change before an interrupted training goes on, and a sheet is not to mix two kinds.
        kind = json.dumps([*prompts, sampler.look if sampler else None])
        self._rows = folder.sample_rows / sha256(kind.encode()).hexdigest()[:16]
        self.notes: list[str] = []

    def between_epochs(self, epoch: int) -> None:
        """Draw a row of samples.png if one is due after so many epochs."""
        if self._every_epochs and epoch % self._every_epochs == 0:
            self._sample(epoch, trained=True)

    def _sample(self, epoch: int, *, trained: bool) -> None:
        sampler, row = self._sampler, self._row(epoch)
        if sampler and not row.exists():
            self._attempt(
                f"the samples of epoch {epoch}", lambda: save_row(row, sampler.draw(trained=trained))
            )

    def finish(self, plan: TrainingPlan, facts: TrainingFacts, epochs: Sequence[EpochMetrics]) -> None:
        """Draw loss.png and samples.png and write the model card, which marks the training as finished."""
        self._attempt("loss.png", lambda: plot_loss(epochs, self._folder.loss_plot))
        if self._sampler:
            self._sample(0, trained=False)
            self._sample(plan.epochs, trained=True)
            self._attempt("samples.png", self._compose)
        samples = self._folder.samples
        means = running_mean([one.loss for one in epochs])
        card = model_card(
            plan,
            facts,
            mean_loss=means[-1] if means else None,  # a crash may have cost all the figures
            base_is_folder=Path(plan.base_model).expanduser().is_dir(),
            samples=samples.name if self._sampler and is_own(samples) else None,
        )
        self._attempt("README.md", lambda: replace_own(self._folder.model_card, card.encode()))

    def _compose(self) -> None:
        files = [row for row in self._folder.drawn_rows() if row.parent == self._rows]
        if not files:
            return  # why there are none is noted already
        numbers = [int(row.stem.removeprefix("epoch-")) for row in files]
        names = ["before" if number == 0 else f"epoch {number}" for number in numbers]
        rows = list(zip(names, files, strict=True))
        compose(self._folder.samples, rows, self._prompts)

    def _row(self, epoch: int) -> Path:
        return self._rows / f"epoch-{epoch:04d}.png"

    def _attempt(self, what: str, make: Callable[[], None]) -> None:
        try:
            make()
        except Exception as error:
            reason = brief(error, _REASON_CHARACTERS)
            sentence = f"{what} could not be made ({type(error).__name__}: {reason})"
            logger.warning("%s; the training is not affected.", sentence, exc_info=error)
            if len(self.notes) < _NOTES:
                self.notes.append(sentence)
