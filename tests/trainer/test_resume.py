"""Whatever ends a training early, the next start goes on, and the weights are those of an undisturbed one."""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from job_contract.outcome import FailureCode
from tests.trainer.conftest import Train, Workshop, wait_for_line
from tests.trainer.sample_sheet import read_sheet
from trainer.metrics import EpochMetrics, MetricsFile

EPOCHS = 6
KILLS = int(os.environ.get("KILLS", "2"))
KILL_EPOCHS = int(os.environ.get("KILL_EPOCHS", EPOCHS))


@pytest.fixture(scope="module")
def undisturbed(undisturbed_after: Callable[[int], dict[str, Tensor]]) -> dict[str, Tensor]:
    return undisturbed_after(EPOCHS)


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
        ("trainer.pictures:fetch_images", 1),  # on a thread of its own
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
    assert epochs_in_metrics(workshop) == list(range(1, EPOCHS + 1))


def test_end_between_an_epochs_checkpoint_and_its_figures_leaves_no_gap_in_the_figures(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the checkpoint saved first, the next start went on after an epoch that has no figures yet."""
    append = MetricsFile.append

    def fill_up(self: MetricsFile, metrics: EpochMetrics) -> None:
        if metrics.epoch == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "append", fill_up)
        assert train(workshop.request(num_epochs=4), CHECKPOINT_EVERY_EPOCHS="1").code == 69
    assert train(workshop.request(num_epochs=4), CHECKPOINT_EVERY_EPOCHS="1").code == 0
    assert epochs_in_metrics(workshop) == [1, 2, 3, 4]


@pytest.mark.timeout(60 + 60 * KILLS)
def test_kill_9_and_sigterm_at_random_moments_change_no_bit_of_the_weights(
    workshop: Workshop, undisturbed_after: Callable[[int], dict[str, Tensor]]
) -> None:
    """KILLS=100 KILL_EPOCHS=300 makes a hundred interruptions of it, KILL_SEED other moments."""
    chance = random.Random(os.environ.get("KILL_SEED", "7"))
    request = workshop.request(num_epochs=KILL_EPOCHS)
    ends: Counter[str] = Counter()
    for _ in range(KILLS):
        process = workshop.start(request, CHECKPOINT_EVERY_EPOCHS="1")
        # While models load, or later; many interruptions later it may be finished.
        wait_for_line(process, (chance.choice([" images, ", "Encoding"]), "trained already"))
        time.sleep(chance.uniform(0, 0.6))  # the moment is what is random here
        number = chance.choice([signal.SIGKILL, signal.SIGTERM])
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
        assert process.returncode in ((-9, 0) if number == signal.SIGKILL else (75, 0)), log
        ends[f"{number.name} ended with {process.returncode}"] += 1
        assert len(list(workshop.folder().checkpoints.glob("epoch-*"))) <= 3  # two, and one being replaced
    process = workshop.start(request, CHECKPOINT_EVERY_EPOCHS="1")
    _, log = process.communicate(timeout=240)
    assert process.returncode == 0, log
    print(*ends.items(), sep="\n")
    assert_same_weights(workshop, undisturbed_after(KILL_EPOCHS))
    assert epochs_in_metrics(workshop) == list(range(1, KILL_EPOCHS + 1))


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


ROWS = {"SAMPLE_EVERY_EPOCHS": "1", "SAMPLE_STEPS": "1", "CHECKPOINT_EVERY_EPOCHS": "1"}


def test_row_of_samples_that_an_interruption_broke_off_is_drawn_at_the_next_start(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was missing for ever, without a note."""
    request = workshop.request(num_epochs=3)
    with monkeypatch.context() as patch:
        signal_at(patch, "trainer.samples:Sampler:draw", 2)
        assert train(request, SAMPLE_PROMPTS='["a cat"]', **ROWS).code == 75
    assert train(request, SAMPLE_PROMPTS='["a cat"]', **ROWS).code == 0
    sheet = read_sheet(workshop.folder().samples, 64)
    assert len(sheet.top) == 4  # before, and three epochs


def test_inside_an_epoch_no_row_is_drawn_for_the_epoch_before_it(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are no longer that epoch's."""
    request = workshop.request(num_epochs=2)
    with monkeypatch.context() as patch:
        signal_at(patch, "trainer.objective:Objective:losses", 6)
        assert train(request).code == 75
    train(request, SAMPLE_PROMPTS='["a cat"]', **ROWS)
    sheet = read_sheet(workshop.folder().samples, 64)
    assert len(sheet.top) == 2  # before, and the second epoch


def test_prompts_that_change_before_a_training_goes_on_get_a_sheet_of_their_own(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a cat stood under the heading of a dog."""
    request = workshop.request(num_epochs=3)
    with monkeypatch.context() as patch:
        signal_at(patch, "trainer.objective:Objective:losses", 9)
        assert train(request, SAMPLE_PROMPTS='["a cat"]', **ROWS).code == 75
    assert train(request, SAMPLE_PROMPTS='["a dog"]', **ROWS).code == 0
    sheet = read_sheet(workshop.folder().samples, 64)
    # Before, the epochs 2, where it went on, and 3; with the cat's there would be a row more.
    assert len(sheet.top) == 3


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


def epochs_in_metrics(workshop: Workshop) -> list[int]:
    return [json.loads(line)["epoch"] for line in workshop.folder().metrics.read_text().splitlines()]
