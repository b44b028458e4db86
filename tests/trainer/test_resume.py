"""Whatever ends a training early, the next start goes on, and the weights are those of an undisturbed one."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from job_contract.outcome import FailureCode
from tests.trainer.conftest import Train, Workshop

EPOCHS = 6


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, pictures: list[Path]
) -> dict[str, Tensor]:
    """The weights of a training that nothing disturbed, in a process of its own."""
    workshop = Workshop(tmp_path_factory.mktemp("undisturbed"), tiny_base, pictures)
    process = workshop.start(workshop.request(num_epochs=EPOCHS), CHECKPOINT_EVERY_EPOCHS="2")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return load_file(workshop.folder().weights)


def assert_same_weights(workshop: Workshop, expected: dict[str, Tensor]) -> None:
    weights = load_file(workshop.folder().weights)
    assert weights.keys() == expected.keys()
    different = [name for name, tensor in weights.items() if not torch.equal(tensor, expected[name])]
    assert not different


def signal_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int) -> None:
    """Send this process a SIGTERM when the function at place begins its call number call."""
    module, _, name = place.rpartition(":")
    owner: Any = __import__(module.partition(":")[0], fromlist=["_"])
    for part in module.split(":")[1:]:
        owner = getattr(owner, part)
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize(
    ("place", "call"),
    [
        ("trainer.run:find_device", 1),
        ("trainer.__main__:find_finished", 1),
        ("trainer.preparation:fetch_images", 1),  # on a thread of its own
        ("trainer.preparation:load_unet", 1),
        ("trainer.preparation:load_text_encoder", 1),
        ("trainer.preparation:encode_texts", 1),
        ("trainer.examples:_encode", 3),
        ("trainer.parts:attach_lora", 1),
        ("trainer.objective:Objective:losses", 1),
        ("trainer.objective:Objective:losses", 11),
        ("trainer.optimizer:AdapterOptimizer:step", 1),
        ("trainer.optimizer:AdapterOptimizer:step", 14),
        ("trainer.training:draw_epoch", 4),
        ("trainer.training:EpochMetrics", 3),
        ("trainer.run:save_checkpoint", 2),
        ("trainer.checkpoint:replace_folder", 3),
        ("trainer.run:export_weights", 1),
        ("trainer.finishing:plot_loss", 1),
        ("trainer.finishing:model_card", 1),
    ],
)
def test_sigterm_in_any_stage_ends_with_75_and_the_next_start_makes_the_same_weights(
    workshop: Workshop,
    train: Train,
    undisturbed: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    call: int,
) -> None:
    """A flag that only the steps look at would miss loading, encoding and saving (failure 14)."""
    request = workshop.request(num_epochs=EPOCHS)
    with monkeypatch.context() as patch:
        signal_at(patch, place, call)
        outcome = train(request, CHECKPOINT_EVERY_EPOCHS="2")
    assert outcome.code == 75, outcome.log
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.EVICTED
    assert train(request, CHECKPOINT_EVERY_EPOCHS="2").code == 0
    assert_same_weights(workshop, undisturbed)


def test_sigterm_between_two_checkpoints_loses_no_step(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eviction may come every few minutes; a training that went back each time would never end."""
    with monkeypatch.context() as patch:
        signal_at(patch, "trainer.objective:Objective:losses", 10)
        train(workshop.request(num_epochs=EPOCHS))
    # Nine steps of four an epoch are done: two epochs and a step.
    assert [path.name for path in workshop.folder().checkpoints.iterdir()] == ["epoch-0002-step-000009"]
    assert "epoch-0002-step-000009 (step 9)" in train(workshop.request(num_epochs=EPOCHS)).log


def test_second_resume_keeps_epochs_and_metrics_exact(
    workshop: Workshop, train: Train, undisturbed: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers that get the first resume right have miscounted on the second (failure 5)."""
    for call in (6, 3, 7):
        with monkeypatch.context() as patch:
            signal_at(patch, "trainer.objective:Objective:losses", call)
            assert train(workshop.request(num_epochs=EPOCHS), CHECKPOINT_EVERY_EPOCHS="2").code == 75
    assert train(workshop.request(num_epochs=EPOCHS), CHECKPOINT_EVERY_EPOCHS="2").code == 0
    assert_same_weights(workshop, undisturbed)
    lines = workshop.folder().metrics.read_text().splitlines()
    assert [f'"epoch": {number}' in line for number, line in enumerate(lines, start=1)] == [True] * EPOCHS


def test_kill_9_at_random_moments_changes_no_bit_of_the_weights(
    workshop: Workshop, undisturbed: dict[str, Tensor]
) -> None:
    moments = random.Random(os.environ.get("KILL_SEED", "7"))
    request = workshop.request(num_epochs=EPOCHS)
    for _ in range(int(os.environ.get("KILLS", "2"))):
        process = workshop.start(request, CHECKPOINT_EVERY_EPOCHS="1")
        wait_for_line(process, ("Encoding", "trained already"))  # many kills later it may be finished
        time.sleep(moments.uniform(0, 0.6))  # the moment is what is random here
        process.kill()
        process.communicate(timeout=30)
    process = workshop.start(request, CHECKPOINT_EVERY_EPOCHS="1")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert_same_weights(workshop, undisturbed)


def test_sigterm_from_outside_ends_the_process_with_75_within_the_grace_period(
    workshop: Workshop, undisturbed: dict[str, Tensor]
) -> None:
    request = workshop.request(num_epochs=400)
    process = workshop.start(request)
    wait_for_line(process, "epoch 2/400")
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 75, log
    assert "goes on from its last checkpoint" in workshop.message.read_text()
    assert list(workshop.folder().checkpoints.glob("epoch-*"))


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    workshop: Workshop, train: Train, undisturbed: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that filled up, or lost power, leaves such a file."""
    with monkeypatch.context() as patch:
        signal_at(patch, "trainer.objective:Objective:losses", 18)
        train(workshop.request(num_epochs=EPOCHS), CHECKPOINT_EVERY_EPOCHS="2")
    newest = max(workshop.folder().checkpoints.glob("epoch-*"))
    state = newest / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    outcome = train(workshop.request(num_epochs=EPOCHS), CHECKPOINT_EVERY_EPOCHS="2")
    assert f"{newest.name} is damaged" in outcome.log
    assert "Going on from the checkpoint epoch-0004 " in outcome.log
    assert_same_weights(workshop, undisturbed)


def test_lost_weights_file_comes_back_from_the_last_checkpoint(
    workshop: Workshop, train: Train, undisturbed: dict[str, Tensor]
) -> None:
    train(workshop.request(num_epochs=EPOCHS))
    workshop.folder().weights.unlink()
    shutil.rmtree(workshop.folder().root / "metrics.jsonl", ignore_errors=True)
    outcome = train(workshop.request(num_epochs=EPOCHS))
    assert outcome.code == 0
    assert f"Going on from the checkpoint epoch-{EPOCHS:04d} " in outcome.log
    assert_same_weights(workshop, undisturbed)


def wait_for_line(process: Any, text: str | tuple[str, ...]) -> None:
    """Read the trainer's log up to a line with text, or with one of several texts."""
    texts = (text,) if isinstance(text, str) else text
    for line in process.stderr:
        if any(one in line for one in texts):
            return
    process.communicate()
    raise AssertionError(f"the trainer ended without a line with {text!r}")
