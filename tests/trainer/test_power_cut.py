"""What is renamed to its place is on the disk before: no power cut leaves a name without its content."""

import os
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import Checkpoint, save_checkpoint
from trainer.style_folder import write_atomically


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths, as they were at that moment, of all that was written through to the disk."""
    paths, fsync = list[str](), os.fsync

    def record(descriptor: int) -> None:
        paths.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    return paths


@pytest.mark.parametrize("again", [False, True])
def test_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, synced: list[str], again: bool
) -> None:
    """One without its content would be the newest, and the whole ones before it removed."""
    tensors = {"master": torch.zeros(3), "losses": torch.zeros(0), "norms": torch.zeros(0)}
    checkpoint = Checkpoint("ours", 1, 10, 0.5, {}, tensors)
    if again:  # as where a damaged one is passed over: into the old folder
        save_checkpoint(tmp_path, checkpoint, keep=2)
        synced.clear()
    save_checkpoint(tmp_path, checkpoint, keep=2)
    aside = tmp_path / ".epoch-0001.partial"
    assert set(synced[:2]) == {f"{aside}/state.json", f"{aside}/state.safetensors"}
    assert synced[2:] == [str(aside), *([f"{tmp_path}/epoch-0001"] if again else []), str(tmp_path)]


def test_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, synced: list[str]) -> None:
    """A weights file that is there is a finished training."""
    write_atomically(tmp_path / "lora_weights.safetensors", b"weights")
    assert synced == [f"{tmp_path}/.lora_weights.safetensors.partial", str(tmp_path)]
