"""What is said at the end of every epoch: a line for people and the dispatcher, a line of JSON."""

import logging
import time
from collections.abc import Callable

from job_contract.progress import Progress, format_progress
from trainer.metrics import EpochMetrics, MetricsFile

logger = logging.getLogger(__name__)


class EpochReporter:
    """Called with the figures of each finished epoch; clock returns seconds."""

    def __init__(
        self, file: MetricsFile, total_epochs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._file = file
        self._total_epochs = total_epochs
        self._clock = clock
        self._started = clock()
        self._epochs_here = 0

    def __call__(self, metrics: EpochMetrics) -> None:
        self._file.append(metrics)
        self._epochs_here += 1
        seconds_per_epoch = (self._clock() - self._started) / self._epochs_here
        remaining = self._total_epochs - metrics.epoch
        progress = Progress(metrics.epoch, self._total_epochs, round(seconds_per_epoch * remaining))
        details = (
            f"loss {metrics.loss:.4f}  {metrics.images_per_second:.2f} images/s  "
            f"memory {metrics.memory_mib} MiB"
        )
        logger.info("%s", format_progress(progress, details))
