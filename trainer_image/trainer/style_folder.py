"""The folder of one style under MODELS_DIR: its file names, its lock, and writing that never half-happens."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job_contract.names import REQUEST_FILE_NAME, WEIGHTS_FILE_NAME
from trainer.errors import StorageError


class StyleFolder:
    """Paths of one style. Nothing is made on disk before `prepare`."""

    def __init__(self, models_dir: Path, style_id: int | str) -> None:
        self.root = models_dir / str(style_id)
        self.weights = self.root / WEIGHTS_FILE_NAME
        self.request = self.root / REQUEST_FILE_NAME
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.log = self.root / "training.log"
        self.loss_plot = self.root / "loss.png"
        self.samples = self.root / "samples.png"
        self.sample_rows = self.checkpoints / "samples"
        self.model_card = self.root / "README.md"
        self.images = self.root / "images"
        """Downloaded pictures; removed at the end of every run."""

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            StorageError: it cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / ".lock").open("a"):
                pass
        except OSError as error:
            raise StorageError(
                f"The folder {self.root} cannot be written ({error.strerror}); check the models volume and "
                "its permissions."
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other trainer away from this style; the lock ends with the process, however it ends.

        Raises:
            StorageError: another process trains this style now.
        """
        with (self.root / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"Another process is training into {self.root} right now; this one stops, and its Job "
                    "tries again later."
                ) from error
            yield


def write_atomically(path: Path, content: bytes) -> None:
    """Write content to path so that a reader, or a crash, sees the old file or the new one, whole.

    Raises:
        OSError: the disk is full or refuses.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_folder(aside: Path, folder: Path) -> None:
    """Rename the finished folder aside to folder, durably; an old folder of that name goes."""
    for file in aside.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
