"""Checkpoints that are whole or not there, and the right one among them."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.conftest import Train, Workshop
from trainer.checkpoint import Checkpoint, discard_checkpoints, load_newest, save_checkpoint
from trainer.errors import StorageError


def make(step: int, *, epoch: int = 1, inside: int = 0, fingerprint: str = "ours") -> Checkpoint:
    tensors = {
        "master": torch.full((3,), float(step)),
        "losses": torch.zeros(inside),
        "norms": torch.zeros(inside),
    }
    return Checkpoint(fingerprint, epoch, step, 0.5, {"scale": 2.0}, tensors)


def test_checkpoint_reads_back_as_it_was_written(tmp_path: Path) -> None:
    written = make(10)
    save_checkpoint(tmp_path, written, keep=2)
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert (read.epoch, read.step, read.loss, read.scaler) == (1, 10, 0.5, {"scale": 2.0})
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in written.tensors.items())


def test_step_inside_an_epoch_is_newer_than_the_epoch_before_it(tmp_path: Path) -> None:
    names = [
        save_checkpoint(tmp_path, checkpoint, keep=9).name
        for checkpoint in (make(10), make(13, inside=3), make(20, epoch=2))
    ]
    assert names == ["epoch-0001", "epoch-0001-step-000013", "epoch-0002"]
    newest = load_newest(tmp_path, "ours")
    assert newest is not None
    assert newest.step == 20


def test_only_the_newest_few_are_kept(tmp_path: Path) -> None:
    for epoch in (1, 2, 3, 4):
        save_checkpoint(tmp_path, make(10 * epoch, epoch=epoch), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0003", "epoch-0004"]


def test_training_saves_as_often_and_keeps_as_many_as_is_set(workshop: Workshop, train: Train) -> None:
    train(workshop.request(num_epochs=9), CHECKPOINT_EVERY_EPOCHS="2", CHECKPOINTS_KEPT="3")
    names = sorted(path.name for path in workshop.folder().checkpoints.iterdir())
    assert names == ["epoch-0006", "epoch-0008", "epoch-0009"]


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_newest_falls_back_to_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, make(10), keep=2)
    newest = save_checkpoint(tmp_path, make(20, epoch=2), keep=2) / name
    content = newest.read_bytes()
    if damage == "gone":
        newest.unlink()
    else:
        newest.write_bytes(content[:20] if damage == "cut" else b"\xff" + content[1:])
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 10


def test_unfinished_folder_is_never_read_and_goes_with_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".epoch-0009.partial").mkdir()
    assert load_newest(tmp_path, "ours") is None
    save_checkpoint(tmp_path, make(10), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]


def test_another_trainings_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(10, fingerprint="theirs"), keep=2)
    assert load_newest(tmp_path, "ours") is None


def test_full_disk_leaves_the_older_checkpoint_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make(10), keep=1)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="No space left"):
            save_checkpoint(tmp_path, make(20, epoch=2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0001"]
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 10


def test_full_disk_promises_no_checkpoint_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match="Started again, the training begins afresh"):
            save_checkpoint(tmp_path, make(10), keep=1)
    save_checkpoint(tmp_path, make(10), keep=1)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="goes on from the checkpoint before it"):
        save_checkpoint(tmp_path, make(20, epoch=2), keep=1)


DEEP = pytest.param("[" * 100_000, id="deep")


@pytest.mark.parametrize("content", ["[]", "null", "7", '""', "{}", '{"sha256": null}', "[[[", b"\xff", DEEP])
def test_values_that_are_other_json_or_none_are_passed_over(tmp_path: Path, content: str | bytes) -> None:
    """They ended every later start of the style, until somebody cleaned up by hand."""
    save_checkpoint(tmp_path, make(10), keep=2)
    newest = save_checkpoint(tmp_path, make(20, epoch=2), keep=2) / "state.json"
    newest.write_bytes(content if isinstance(content, bytes) else content.encode())
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 10


def change_values(path: Path, change: Callable[[dict[str, Any]], object], *, hash_again: bool) -> None:
    """Edit a checkpoint's values; with hash_again as another version of the program would write them."""
    values = json.loads((path / "state.json").read_text())
    change(values)
    if hash_again:
        del values["sha256"]
        content = json.dumps(values, sort_keys=True).encode() + (path / "state.safetensors").read_bytes()
        values["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "state.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [lambda values: values.pop("scaler"), lambda values: values.update(sampler={})],
    ids=["a field less", "a field more"],
)
def test_checkpoint_of_another_version_is_passed_over(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    change_values(save_checkpoint(tmp_path, make(10), keep=2), change, hash_again=True)
    assert load_newest(tmp_path, "ours") is None


def test_changed_value_is_damage(tmp_path: Path) -> None:
    """Where only the tensors were hashed, an epoch that did not belong to its step ended in an IndexError."""
    path = save_checkpoint(tmp_path, make(10), keep=2)
    change_values(path, lambda values: values.update(step=10), hash_again=False)
    assert load_newest(tmp_path, "ours") is not None
    change_values(path, lambda values: values.update(epoch=2), hash_again=False)
    assert load_newest(tmp_path, "ours") is None


def test_what_somebody_keeps_among_the_checkpoints_is_neither_taken_nor_removed(tmp_path: Path) -> None:
    """A copy of a good one is the most natural thing to put there."""
    kept = []
    for number in range(1, 4):
        newest = save_checkpoint(tmp_path, make(10 * number, epoch=number), keep=1)
        shutil.copytree(newest, tmp_path / f"{newest.name}-best")
        (newest / "notes.txt").write_text("mine")
        kept += [tmp_path / f"{newest.name}-best" / "state.json", newest / "notes.txt"]
    save_checkpoint(tmp_path, make(30, epoch=3), keep=1)  # again, into a folder that has notes
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.epoch == 3
    discard_checkpoints(tmp_path)
    assert load_newest(tmp_path, "ours") is None
    assert all(path.exists() for path in kept)


def test_folders_that_hold_somebody_elses_files_only_do_not_cost_the_new_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file manager's .DS_Store in old ones was enough to remove every new one when it was written."""
    for epoch in (8, 9):
        (save_checkpoint(tmp_path, make(10 * epoch, epoch=epoch), keep=2) / ".DS_Store").write_text("")
    discard_checkpoints(tmp_path)
    saved = [save_checkpoint(tmp_path, make(10 * epoch, epoch=epoch), keep=2) for epoch in (1, 2)]
    assert all(path.exists() for path in saved)
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 20
    assert caplog.text == ""


def test_checkpoint_passed_over_as_damaged_does_not_cost_the_one_that_is_saved_next(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make(10), keep=1)
    damaged = tmp_path / "epoch-0002"
    shutil.copytree(tmp_path / "epoch-0001", damaged)
    (damaged / "state.safetensors").write_bytes(b"")
    newest = save_checkpoint(tmp_path, make(15, inside=5), keep=1)
    assert list(tmp_path.iterdir()) == [newest]
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 15


def test_checkpoint_saved_again_replaces_a_damaged_one(tmp_path: Path) -> None:
    (save_checkpoint(tmp_path, make(10), keep=2) / "state.json").write_text("{")
    save_checkpoint(tmp_path, make(10), keep=2)
    read = load_newest(tmp_path, "ours")
    assert read is not None
    assert read.step == 10
