"""The folder of one style under MODELS_DIR: its file names, its lock, and writing that never half-happens."""

import fcntl
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from job_contract.names import REQUEST_FILE_NAME, WEIGHTS_FILE_NAME
from trainer.errors import InvalidImageError, StorageError
from trainer.images import all_refusals, picture_name

MADE_BY: Final = "Made by lora-trainer"
"""Stands in the model card, in loss.png and in samples.png: without it such a file is somebody else's."""
_WEIGHTS_MARK: Final = b'"lora_trainer.fingerprint"'
"""Stands in the metadata of a weights file in the same way."""

MAX_HEADER_BYTES: Final = 10_000_000
"""Of a weights file; the captions make it long."""

logger = logging.getLogger(__name__)


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
        self.downloads = self.root / ".downloads"
        """Fetched pictures; removed at the end of every run."""

    def drawn_rows(self) -> list[Path]:
        """Return the rows of samples.png that are drawn already, for any prompts, by epoch."""
        return sorted(self.sample_rows.glob(f"*/epoch-{'[0-9]' * 4}.png"))

    def refuse_own_files(self, pictures: Sequence[str]) -> None:
        """Keep a training from reading what it writes, as loss.png, and from writing over its pictures.

        Raises:
            InvalidImageError: some pictures are where the trainer has its own files.
        """
        ours = {os.path.realpath(path) for path in vars(self).values() if path != self.root}
        inside = [
            InvalidImageError(
                f"{picture_name(path)} is where the trainer has its own files; put pictures into a folder of "
                "their own"
            )
            for path in pictures
            if "://" not in path and any(_is_inside(os.path.realpath(path), own) for own in ours)
        ]
        if inside:
            raise all_refusals(inside)

    def set_foreign_weights_aside(self) -> None:
        """Rename a weights file that no training made, for its name is the result's.

        Raises:
            OSError: the disk refuses.
        """
        if not self.weights.exists():
            return
        if not _are_own(self.weights):
            names = (f"{self.weights.name}.kept-{number}" for number in itertools.count(1))
            kept = next(path for path in map(self.weights.with_name, names) if not path.exists())
            self.weights.rename(kept)
            logger.warning("%s was not made by the trainer and is now %s.", self.weights, kept.name)

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


def _is_inside(path: str, own: str) -> bool:
    return path == own or path.startswith(own + os.sep)


def is_own(path: Path) -> bool:
    """Say whether a file beside the weights is one that a training made; what cannot be read is none."""
    try:
        return path.is_file() and MADE_BY.encode() in path.read_bytes()
    except OSError:
        return False


def _are_own(weights: Path) -> bool:
    """Say the same of a weights file, or of what is in its place."""
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return _WEIGHTS_MARK in file.read(min(length, MAX_HEADER_BYTES))
    except OSError:
        return False


def replace_own(path: Path, content: bytes) -> None:
    """Write content to path atomically, unless somebody else's file is there.

    Raises:
        FileExistsError: there is one; it is kept.
        OSError: the disk is full or refuses.
    """
    if path.exists() and not is_own(path):
        raise FileExistsError(f"the {path.name} that is there is not the trainer's and is kept; move it away")
    write_atomically(path, content)


def replace_folder(aside: Path, folder: Path) -> None:
    """Rename the finished folder aside to folder, durably; in an old one of that name files are replaced."""
    for file in aside.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(aside)
    if folder.exists():
        for file in aside.iterdir():
            file.replace(folder / file.name)
        sync_folder(folder)
        aside.rmdir()
    else:
        aside.rename(folder)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
