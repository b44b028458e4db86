"""Checkpoints: written aside and renamed, checked by hash when read, the newest whole one wins."""

import hashlib
import json
import logging
import shutil
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
        inside = self.tensors["losses"].numel()
        return f"epoch-{self.epoch:04d}" + (f"-step-{self.step:06d}" if inside else "")


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write checkpoint under folder, then drop all but the newest keep; return its folder.

    Raises:
        StorageError: the disk is full or refuses; the older checkpoints are untouched then.
    """
    aside = folder / f".{checkpoint.name}.partial"
    try:
        for rest in folder.glob(".*.partial"):  # what a killed process left
            shutil.rmtree(rest)
        aside.mkdir(parents=True)
        tensors = save({name: tensor.cpu() for name, tensor in checkpoint.tensors.items()})
        values = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        values |= {"tensors": _TENSORS, "sha256": hashlib.sha256(tensors).hexdigest()}
        (aside / _TENSORS).write_bytes(tensors)
        (aside / _VALUES).write_text(json.dumps(values, indent=1))
        replace_folder(aside, folder / checkpoint.name)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise StorageError(
            f"The checkpoint {checkpoint.name} could not be written ({error.strerror}); make room on the "
            "models volume. The training goes on from the checkpoint before it."
        ) from error
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return folder / checkpoint.name


def load_newest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """Return the newest whole checkpoint of this training; None when there is none."""
    for path in _newest_first(folder):
        try:
            checkpoint = _read(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            logger.warning("The checkpoint %s is damaged (%s) and is passed over.", path.name, error)
            continue
        if checkpoint.fingerprint == fingerprint:
            return checkpoint
        logger.info("The checkpoint %s is of another request, settings or pictures.", path.name)
        return None
    return None


def _read(path: Path) -> Checkpoint:
    values = json.loads((path / _VALUES).read_text())
    content = (path / _TENSORS).read_bytes()
    if hashlib.sha256(content).hexdigest() != values.pop("sha256"):
        raise ValueError("its hash does not match")
    return Checkpoint(**values | {"tensors": load(content)})


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints' folders by name, which is by step; what is not finished has a dot before it."""
    return sorted(folder.glob("epoch-*"), key=lambda path: path.name, reverse=True)
