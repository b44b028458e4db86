"""metrics.jsonl: one line of JSON for each epoch, for programs; loss.png and the model card read it too."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from trainer.style_folder import write_atomically


@dataclass(frozen=True)
class EpochMetrics:
    """What an epoch showed. Rates are those of this process, memory is its peak so far."""

    epoch: int
    step: int
    """Optimizer steps done, over all epochs."""
    loss: float
    """Mean over the epoch's images, weighted as the training weighs them."""
    grad_norm: float
    """Mean over the epoch's steps, before clipping."""
    learning_rate: float
    """Of the epoch's last step."""
    skipped_steps: int
    """Steps that the fp16 scaler skipped, over all epochs."""
    images_per_second: float
    memory_mib: int


_LINE: Final = TypeAdapter(EpochMetrics)


class MetricsFile:
    """Appends an epoch's line; reads the lines back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, metrics: EpochMetrics) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(metrics)) + "\n")

    def keep_until(self, epoch: int) -> list[EpochMetrics]:
        """Drop what came after epoch, and what `read` leaves out; return what is left."""
        kept = [metrics for metrics in self.read() if metrics.epoch <= epoch]
        lines = "".join(json.dumps(asdict(metrics)) + "\n" for metrics in kept)
        write_atomically(self._path, lines.encode())
        return kept

    def read(self) -> list[EpochMetrics]:
        """Return the epochs up to the first damaged line: what follows one cannot be trusted either."""
        if not self._path.exists():
            return []
        epochs = []
        for line in self._path.read_bytes().splitlines():
            try:
                epochs.append(_LINE.validate_json(line))
            except ValidationError:  # cut by a crash, no UTF-8, or without a figure
                break
        return epochs
