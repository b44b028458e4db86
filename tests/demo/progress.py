"""The demo's progress: a bar with an ETA on a terminal, plain lines elsewhere."""

import sys
from pathlib import Path
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from job_contract.progress import parse_progress


class TrainingProgress:
    """Reads the trainer's log, as `kubectl logs` would show it."""

    def __init__(self, log: Path, epochs: int) -> None:
        self._log = log
        self._shown = 0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs  ETA"),
            TimeRemainingColumn(),
            disable=not sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("Training", total=epochs)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Show what the log says by now."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        progress = parse_progress("\n".join(lines))
        if progress:
            self._bar.update(self._task, completed=progress.current_epoch)
        if not sys.stdout.isatty():
            for line in lines[self._shown :]:
                print(f"  {line}", flush=True)
            self._shown = len(lines)
