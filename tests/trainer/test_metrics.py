"""metrics.jsonl reads back up to what a crash, a disk or a person left in it."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from trainer.metrics import EpochMetrics, MetricsFile


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 4 * number, 0.5, 1.0, 1e-4, 0, 2.5, 100)


@pytest.fixture
def file(tmp_path: Path) -> MetricsFile:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for number in (1, 2, 3):
        file.append(epoch(number))
    return file


def test_figures_read_back_as_they_were_written(file: MetricsFile, tmp_path: Path) -> None:
    odd = EpochMetrics(4, 16, float("inf"), 0.1 + 0.2, 1e-4, 3, 2.5, 100)
    file.append(odd)
    assert file.read() == [epoch(1), epoch(2), epoch(3), odd]


def test_what_comes_after_an_epoch_is_dropped(file: MetricsFile) -> None:
    assert file.keep_until(2) == file.read() == [epoch(1), epoch(2)]


@pytest.mark.parametrize(
    "line",
    [
        b'{"epoch": 3, "st',
        b"\xff\xfe",
        b"null",
        b"[]",
        b"",
        json.dumps({**asdict(epoch(3)), "epoch": None}).encode(),
        json.dumps({**asdict(epoch(3)), "loss": "low"}).encode(),
        json.dumps({"epoch": 3}).encode(),
    ],
)
def test_damaged_line_ends_the_figures_and_no_training(
    file: MetricsFile, tmp_path: Path, line: bytes
) -> None:
    """It ended every later training of the style, of another request too, until somebody cleaned up."""
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], line, lines[2], b""]))
    assert file.read() == [epoch(1), epoch(2)]
    assert file.keep_until(0) == []
    assert path.read_bytes() == b""
