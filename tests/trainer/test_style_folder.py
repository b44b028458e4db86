"""What in a style's folder is the trainer's own, and what is somebody else's."""

import json
from pathlib import Path

import pytest

from trainer.style_folder import StyleFolder, is_own


@pytest.fixture
def folder(tmp_path: Path) -> StyleFolder:
    folder = StyleFolder(tmp_path, 1)
    folder.prepare()
    return folder


def test_own_weights_are_known_by_a_mark_that_comes_late_in_a_long_header(folder: StyleFolder) -> None:
    """A hundred long captions make megabytes; every retraining left one more .kept file."""
    metadata = {"ss_tag_frequency": "x" * (3 << 20), "lora_trainer.fingerprint": "ours"}
    header = json.dumps({"__metadata__": metadata}).encode()
    folder.weights.write_bytes(len(header).to_bytes(8, "little") + header)
    folder.set_foreign_weights_aside()
    assert folder.weights.exists()


def test_mark_behind_the_header_makes_no_weights_our_own(folder: StyleFolder) -> None:
    folder.weights.write_bytes((2).to_bytes(8, "little") + b'{}"lora_trainer.fingerprint"')
    folder.set_foreign_weights_aside()
    assert not folder.weights.exists()


def test_folder_in_the_place_of_the_weights_is_set_aside(folder: StyleFolder) -> None:
    """It failed the export after hours of training."""
    folder.weights.mkdir()
    folder.set_foreign_weights_aside()
    assert not folder.weights.exists()
    assert (folder.root / "lora_weights.safetensors.kept-1").is_dir()


def test_file_that_cannot_be_read_is_not_our_own(folder: StyleFolder) -> None:
    assert not is_own(folder.root / ("x" * 300))
