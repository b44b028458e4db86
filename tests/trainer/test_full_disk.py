"""A volume that fills up at any moment ends with a sentence or a note, and with room it goes on."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from job_contract.outcome import FailureCode
from tests.trainer.conftest import Train, Workshop

EPOCHS = 4
SETTINGS = {"CHECKPOINT_EVERY_EPOCHS": "2", "SAMPLE_PROMPTS": '["a cat"]', "SAMPLE_STEPS": "1"}


@pytest.fixture
def small_volume(workshop: Workshop) -> Iterator[Path]:
    """The models folder as a volume of 4 MB of its own."""
    workshop.models.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(workshop.models)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no volume can be mounted here: {done.stderr.strip()}")
    yield workshop.models
    subprocess.run(["umount", "--lazy", str(workshop.models)], check=True)


@pytest.mark.parametrize(
    ("free_kilobytes", "place"),
    [
        (4, "A file could not be"),
        (8, "A file could not be"),
        (300, "The checkpoint epoch-0002 could not"),
        (800, "The checkpoint epoch-0004 could not"),
        (1120, "lora_weights.safetensors could not"),
        (1220, None),
    ],
)
def test_volume_that_is_full_at_any_stage_is_no_success_and_with_room_the_weights_are_the_same(
    workshop: Workshop,
    train: Train,
    undisturbed_after: Callable[[int], dict[str, Tensor]],
    small_volume: Path,
    free_kilobytes: int,
    place: str | None,
) -> None:
    """Swallowed, it would look like success (failure 13); half written, it would spoil the next start.

    A checkpoint takes 500 kB, the weights 168, the pictures 52.
    """
    ballast = small_volume / "ballast"
    ballast.write_bytes(bytes(4_194_304 - 1024 * free_kilobytes))
    request = workshop.request(num_epochs=EPOCHS)
    outcome = train(request, **SETTINGS)
    if place:
        assert outcome.code == 69, outcome.log
        assert outcome.failure is not None
        assert outcome.failure.failure_code is FailureCode.STORAGE_ERROR
        assert place in outcome.failure.failure_reason
        assert "No space left on device" in outcome.failure.failure_reason
        assert "the models volume" in outcome.failure.failure_reason
    else:  # only what stands beside the weights found no room
        assert outcome.code == 0, outcome.log
        assert outcome.result is not None
        assert any("No space left on device" in note for note in outcome.result.notes)
    ballast.unlink()
    again = train(request, **SETTINGS)
    assert again.code == 0, again.log
    weights = load_file(workshop.folder().weights)
    assert all(torch.equal(weights[name], tensor) for name, tensor in undisturbed_after(EPOCHS).items())
    lines = workshop.folder().metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))
    if place:
        assert again.result is not None
        assert again.result.notes == []
        for picture in (workshop.folder().loss_plot, workshop.folder().samples):
            with Image.open(picture) as opened:
                opened.load()


@pytest.mark.parametrize("name", ["loss.png", "samples.png", "README.md"])
def test_file_beside_the_weights_that_cannot_be_written_is_noted_and_fails_nothing(
    workshop: Workshop, train: Train, name: str
) -> None:
    """The device that is always full takes the place of the file that is written aside."""
    folder = workshop.folder()
    folder.prepare()
    (folder.root / f".{name}.partial").symlink_to("/dev/full")
    outcome = train(workshop.request(num_epochs=1), **SETTINGS)
    assert outcome.code == 0, outcome.log
    assert outcome.result is not None
    assert len(outcome.result.notes) == 1
    assert outcome.result.notes[0].startswith(f"{name} could not be made")
    assert "No space left on device" in outcome.result.notes[0]
    assert not (folder.root / name).exists()


def test_log_file_that_cannot_be_written_fails_nothing(workshop: Workshop, train: Train) -> None:
    folder = workshop.folder()
    folder.prepare()
    folder.log.symlink_to("/dev/full")
    outcome = train(workshop.request(num_epochs=1))
    assert outcome.code == 0, outcome.log
    assert outcome.log.count("No space left on device") == 1
    assert "epoch 1/1" in outcome.log
