"""The figures of an epoch are those of the epoch: in the log's line and in metrics.jsonl."""

import json
import logging
import re
import resource
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor

from job_contract.progress import parse_progress
from tests.trainer.conftest import Train, Workshop
from tests.trainer.rig import IMAGES, Rig
from trainer.interrupt import Interrupt
from trainer.metrics import EpochMetrics, MetricsFile
from trainer.processes import ProcessGroup
from trainer.reporting import EpochReporter
from trainer.training import Hooks, Training


class Clock:
    """Goes on only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_line_of_an_epoch_names_its_figures_and_the_time_that_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="trainer")
    clock = Clock()
    report = EpochReporter(MetricsFile(tmp_path / "metrics.jsonl"), 10, clock)
    metrics = EpochMetrics(5, 50, 0.12346, 1.0, 1e-4, 0, 2.514, 585)  # the first after an interruption
    for epoch, seconds in ((5, 30), (6, 10)):
        clock.seconds += seconds
        report(replace(metrics, epoch=epoch))
    assert caplog.messages == [
        "epoch 5/10  loss 0.1235  2.51 images/s  memory 585 MiB  ETA 0:02:30",
        "epoch 6/10  loss 0.1235  2.51 images/s  memory 585 MiB  ETA 0:01:20",
    ]
    assert [one.epoch for one in MetricsFile(tmp_path / "metrics.jsonl").read()] == [5, 6]


def test_figures_of_an_epoch_are_what_the_steps_were(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes half a second by the clock that the loop reads."""
    rig, clock, norms = Rig(tiny_base, num_epochs=2), Clock(), []
    optimizer = rig.parts.optimizer
    take_step = optimizer.step

    def step() -> Tensor:
        clock.seconds += 0.5
        norms.append(float(rig.parts.adapter.gradients.norm()))
        return take_step()

    monkeypatch.setattr(optimizer, "step", step)
    monkeypatch.setattr("trainer.training.time", SimpleNamespace(monotonic=clock))
    hooks = Hooks(on_epoch=rig.epochs.append, peak_memory_mib=lambda: 585)
    training = Training(rig.parts, rig.plan, group=ProcessGroup(), interrupt=Interrupt(), hooks=hooks)
    training.train()
    assert [one.epoch for one in rig.epochs] == [1, 2]
    assert [one.step for one in rig.epochs] == [IMAGES, 2 * IMAGES]
    for metrics, of_epoch in zip(rig.epochs, (norms[:IMAGES], norms[IMAGES:]), strict=True):
        assert metrics.grad_norm == pytest.approx(sum(of_epoch) / IMAGES, rel=1e-4)
        assert metrics.grad_norm > 0
        assert metrics.learning_rate == pytest.approx(1e-3)  # the rig's
        assert metrics.images_per_second == pytest.approx(2)
        assert metrics.memory_mib == 585


def test_whole_training_writes_the_same_figures_into_its_log_and_metrics(
    workshop: Workshop, train: Train
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    outcome = train(workshop.request(learning_rate=3e-4), LR_SCHEDULE="constant", WARMUP_FRACTION="0")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    figures = [json.loads(line) for line in workshop.folder().metrics.read_text().splitlines()]
    lines = re.findall(r"epoch (\d+)/2  loss (\S+)  (\S+) images/s  memory (\d+) MiB  ETA", outcome.log)
    assert lines == [
        (
            str(one["epoch"]),
            f"{one['loss']:.4f}",
            f"{one['images_per_second']:.2f}",
            str(one["memory_mib"]),
        )
        for one in figures
    ]
    assert len(lines) == 2
    for one in figures:
        assert 0 < before <= one["memory_mib"] <= after  # on a CPU, the process's
        assert one["learning_rate"] == pytest.approx(3e-4)
        assert one["grad_norm"] > 0
        assert one["images_per_second"] > 0
    progress = parse_progress(outcome.log)
    assert progress is not None
    assert (progress.current_epoch, progress.estimated_seconds) == (2, 0)
