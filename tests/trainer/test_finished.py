"""Weights files that say nothing of a finished training."""

from pathlib import Path

from trainer.finished import find_finished
from trainer.style_folder import StyleFolder


def test_deeply_nested_header_is_damage(tmp_path: Path) -> None:
    """Python's RecursionError is no ValueError; it ended every later start of the style."""
    folder = StyleFolder(tmp_path, 1)
    folder.prepare()
    folder.model_card.write_text("")
    folder.weights.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    assert find_finished(folder, "ours", lambda: None) is None
