"""Checkpoints: written aside and renamed, checked by hash when read, the newest whole one wins."""

import hashlib
import json
import logging
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer.errors import StorageError
from trainer.style_folder import replace_folder

_TENSORS: Final = "state.safetensors"
_VALUES: Final = "state.json"
_NAME: Final = re.compile(r"epoch-\d{4}(-step-\d{6})?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A training between two optimizer steps."""

    fingerprint: str
    """Of request, settings and pictures: a checkpoint of any other training is not ours."""
    epoch: int
    """Epochs that are complete."""
    step: int
    """Optimizer steps that are done, over all epochs."""
    loss: float
    """Mean loss of the last complete epoch."""
    scaler: dict[str, Any]
    tensors: dict[str, Tensor]
    """The optimizer's tensors, and `losses` and `norms` [steps] of the epoch that is under way."""

    @property
    def name(self) -> str:
        # A whole epoch sorts before the steps that follow it.
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if self.inside_epoch else "")

    @property
    def inside_epoch(self) -> bool:
        """Whether steps of the next epoch are done."""
        return self.tensors["losses"].numel() > 0


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write checkpoint under folder, then drop all but the newest keep; return its folder.

    Newer ones are those that were passed over as damaged: they are dropped as well.

    Raises:
        StorageError: the disk is full or refuses; the older checkpoints are untouched then.
    """
    aside = folder / f".{checkpoint.name}.partial"
    try:
        for rest in folder.glob(".epoch-*.partial"):  # what a killed process left
            shutil.rmtree(rest)
        aside.mkdir(parents=True)
        tensors = save({name: tensor.cpu() for name, tensor in checkpoint.tensors.items()})
        values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        values["tensors"] = _TENSORS
        values["sha256"] = _hash(values, tensors)
        (aside / _TENSORS).write_bytes(tensors)
        (aside / _VALUES).write_text(json.dumps(values, indent=1))
        replace_folder(aside, folder / checkpoint.name)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        older = "goes on from the checkpoint before it" if _newest_first(folder) else "begins afresh"
        raise StorageError(
            f"The checkpoint {checkpoint.name} could not be written ({error.strerror}); make room on the "
            f"models volume. Started again, the training {older}."
        ) from error
    ours = _newest_first(folder)
    kept = [path for path in ours if path.name <= checkpoint.name][:keep]
    for path in ours:
        if path not in kept:
            _remove(path)
    return folder / checkpoint.name


def discard_checkpoints(folder: Path) -> None:
    """Remove all checkpoints under folder, and nothing else."""
    for path in _newest_first(folder):
        _remove(path)


def load_newest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Return the newest whole checkpoint of this training; None when there is none."""
    for path in _newest_first(folder):
        try:
            checkpoint = _read(path)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
            SafetensorError,
        ) as error:
            # The values may be any JSON, or have the fields of another version of this program.
            logger.warning("The checkpoint %s is damaged (%s) and is passed over.", path.name, error)
            continue
        if checkpoint.fingerprint == fingerprint:
            return checkpoint
        logger.info("The checkpoint %s is of another request, settings, pictures or base.", path.name)
        return None
    return None


def _read(path: Path) -> Checkpoint:
    values = json.loads((path / _VALUES).read_text())
    content = (path / _TENSORS).read_bytes()
    if values.pop("sha256") != _hash(values, content):
        raise ValueError("its hash does not match")
    return Checkpoint(**values | {"tensors": load(content)})


def _hash(values: dict[str, Any], tensors: bytes) -> str:
    """Return the SHA-256 of values, whatever their order, and tensors."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    digest.update(tensors)
    return digest.hexdigest()


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints' folders by name, which is by step; somebody's epoch-0010-best is none."""
    ours = [path for path in folder.glob("epoch-*") if _NAME.fullmatch(path.name) and _has_our_files(path)]
    return sorted(ours, key=lambda path: path.name, reverse=True)


def _has_our_files(path: Path) -> bool:
    """Whether it is a checkpoint still: _remove leaves the folder where others put files into it."""
    try:
        return any((path / name).exists() for name in (_VALUES, _TENSORS))
    except OSError:
        return True  # the reading says what is wrong


def _remove(path: Path) -> None:
    """Remove a checkpoint, but not what somebody else put beside its files."""
    with suppress(OSError):  # as of a folder that is not empty
        (path / _TENSORS).unlink(missing_ok=True)
        (path / _VALUES).unlink(missing_ok=True)
        path.rmdir()
