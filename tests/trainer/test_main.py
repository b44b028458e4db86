"""Whole trainings by the command line: what they leave behind, and how each kind of failure ends."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from job_contract.outcome import FailureCode
from job_contract.progress import parse_progress
from tests.trainer.conftest import Train, Workshop
from trainer.base_model import find_base
from trainer.errors import ConfigurationError


def test_training_leaves_the_files_of_the_contract_and_no_others(workshop: Workshop, train: Train) -> None:
    """A second .safetensors at this level would be what a loader of the folder takes."""
    outcome = train(workshop.request(num_epochs=2), SAMPLE_PROMPTS='["a cat"]', CHECKPOINT_EVERY_EPOCHS="1")
    folder = workshop.folder()
    assert outcome.code == 0
    assert outcome.result is not None
    assert outcome.result.model_path == str(folder.weights)
    assert outcome.result.epochs == 2
    assert outcome.result.notes == []
    assert {path.name for path in folder.root.iterdir() if not path.name.startswith(".")} == {
        "lora_weights.safetensors",
        "checkpoints",
        "request.json",
        "metrics.jsonl",
        "training.log",
        "loss.png",
        "samples.png",
        "README.md",
    }
    assert {path.name for path in folder.checkpoints.iterdir()} == {"epoch-0001", "epoch-0002", "samples"}
    with Image.open(folder.samples) as samples:
        assert samples.height > 2 * 64  # before and after
    metrics = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2]
    assert outcome.result.loss == pytest.approx(metrics[-1]["loss"])


def test_every_epoch_logs_a_line_that_the_dispatcher_parses(workshop: Workshop, train: Train) -> None:
    outcome = train(workshop.request(num_epochs=2))
    progress = parse_progress(outcome.log)
    assert progress is not None
    assert (progress.current_epoch, progress.total_epochs, progress.estimated_seconds) == (2, 2, 0)
    assert "images/s" in outcome.log
    assert "MiB" in outcome.log


def test_finished_training_started_again_completes_without_training(workshop: Workshop, train: Train) -> None:
    """A Job's retry after a lost status must not spend a GPU's hour again."""
    first = train(workshop.request())
    weights = workshop.folder().weights
    before = weights.stat()
    second = train(workshop.request())
    assert second.code == 0
    assert second.result is not None
    assert first.result is not None
    assert second.result.loss == first.result.loss
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert "trained already" in second.log


def test_style_id_alone_trains_the_saved_request_again(workshop: Workshop, train: Train) -> None:
    train(workshop.request(trigger_word="blorp"))
    workshop.folder().weights.unlink()
    outcome = train(["--style-id", "1"])
    assert outcome.code == 0
    assert workshop.folder().weights.exists()
    assert "blorp" in workshop.folder().model_card.read_text()


def test_empty_request_file_with_style_id_setting_trains_the_saved_request(
    workshop: Workshop, train: Train, tmp_path: Path
) -> None:
    """The downward API writes an empty file where the pod has no annotation."""
    train(workshop.request())
    empty = tmp_path / "empty.json"
    empty.write_text("")
    assert train(["--request", str(empty)], STYLE_ID="1").code == 0


def test_request_that_differs_starts_afresh_and_says_so(workshop: Workshop, train: Train) -> None:
    """Going on from another training's checkpoint would mix two styles."""
    train(workshop.request(num_epochs=2), CHECKPOINT_EVERY_EPOCHS="1")
    outcome = train(workshop.request(num_epochs=3), CHECKPOINT_EVERY_EPOCHS="1")
    assert outcome.result is not None
    assert outcome.result.epochs == 3
    assert "starting afresh" in outcome.log
    assert len(workshop.folder().metrics.read_text().splitlines()) == 3


def test_changed_picture_under_the_same_name_starts_afresh(
    workshop: Workshop, train: Train, tmp_path: Path
) -> None:
    picture = Path(shutil.copy(workshop.pictures[0], tmp_path / "picture.jpg"))
    arguments = ["--style-id", "1", "--images", str(picture), "--epochs", "1"]
    train(arguments)
    before = load_file(workshop.folder().weights)
    Image.effect_mandelbrot((300, 300), (-3, -2.5, 2, 2.5), 100).convert("RGB").save(picture)
    outcome = train(arguments)
    assert "starting afresh" in outcome.log
    after = load_file(workshop.folder().weights)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("place", "error", "what"),
    [
        (
            "diffusers.schedulers.scheduling_ddim.DDIMScheduler.step",
            torch.OutOfMemoryError("CUDA out of memory.\n" + "Tried to allocate 2 GiB. " * 40),
            {"the samples of epoch 0", "the samples of epoch 1", "the samples of epoch 20"},
        ),
        ("PIL.Image.Image.save", OSError("encoder error -2"), {"the samples of epoch 1"}),
        ("PIL.ImageDraw.Draw", ValueError("no font"), {"samples.png"}),
        ("matplotlib.figure.Figure.savefig", MemoryError(), {"loss.png"}),
    ],
    ids=["out of memory in the pipeline", "PIL fails", "drawing fails", "matplotlib fails"],
)
def test_samples_and_plots_that_fail_are_noted_and_the_training_completes(
    workshop: Workshop,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    what: set[str],
) -> None:
    """The weights are saved: running out of memory afterwards is no failure (failure 15)."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    settings = {"SAMPLE_PROMPTS": '["a cat"]', "SAMPLE_STEPS": "1", "SAMPLE_EVERY_EPOCHS": "1"}
    outcome = train(workshop.request(num_epochs=20), **settings)
    assert outcome.code == 0, outcome.log
    assert outcome.result is not None
    assert 1 <= len(outcome.result.notes) <= 5
    assert {note.partition(" could")[0] for note in outcome.result.notes} & what
    assert all(type(error).__name__ in note for note in outcome.result.notes)
    assert workshop.message.stat().st_size <= 4096
    assert load_file(workshop.folder().weights)
    for one in what:
        assert f"{one} could not be made" in outcome.log
    assert train(workshop.request(num_epochs=20), **settings).log.count("trained already") == 1


def test_out_of_memory_at_the_export_is_said_as_that_and_the_retry_trains_nothing_again(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training is done by then, and in its checkpoint (failure 15)."""

    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr("trainer.run.export_weights", fail)
        outcome = train(workshop.request())
    assert outcome.code == 70
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.OUT_OF_MEMORY
    assert "at least 6 GB" in outcome.failure.failure_reason
    again = train(workshop.request())
    assert again.code == 0
    assert "Going on from the checkpoint epoch-0002" in again.log
    assert "epoch 2/2" not in again.log


def test_samples_get_a_row_every_so_many_epochs(workshop: Workshop, train: Train) -> None:
    train(
        workshop.request(num_epochs=3), SAMPLE_PROMPTS='["a cat"]', SAMPLE_EVERY_EPOCHS="1", SAMPLE_STEPS="1"
    )
    with Image.open(workshop.folder().samples) as samples:
        assert samples.height == 24 + 4 * 64  # before, epochs 1 and 2, after


def test_aspect_buckets_train_pictures_of_different_shapes(workshop: Workshop, train: Train) -> None:
    outcome = train(workshop.request(batch_size=2), ASPECT_BUCKETS="true", RESOLUTION="128")
    assert outcome.code == 0, outcome.log


def test_two_trainers_of_one_style_are_kept_apart(workshop: Workshop, train: Train) -> None:
    """Both would write the same checkpoints."""
    folder = workshop.folder()
    folder.prepare()
    with (folder.root / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcome = train(workshop.request())
    assert outcome.code == 69
    assert "Another process is training" in outcome.log


def test_request_in_bad_json_ends_with_65_and_a_reason(
    workshop: Workshop, train: Train, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text('{"style_id": 1, "num_epochs": 0}')
    outcome = train(["--request", str(broken)])
    assert outcome.code == 65
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.INVALID_REQUEST
    assert "image_paths is missing" in outcome.failure.failure_reason
    assert "num_epochs" in outcome.failure.failure_reason


def test_folder_without_pictures_is_no_success(workshop: Workshop, train: Train, tmp_path: Path) -> None:
    """ "No data found" and exit 0 would make a Job complete that trained nothing (failure 13)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    outcome = train(["--style-id", "1", "--images", str(empty)])
    assert outcome.code == 65
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.INVALID_IMAGES


def test_damaged_picture_ends_with_65_and_its_name(workshop: Workshop, train: Train, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(workshop.pictures[0].read_bytes()[:2000])
    outcome = train(workshop.request(image_paths=[str(workshop.pictures[1]), str(damaged)]))
    assert outcome.code == 65
    assert outcome.failure is not None
    assert "damaged.jpg" in outcome.failure.failure_reason


@pytest.mark.parametrize("arguments", [[], ["--epochs", "3"], ["--style-id", "1"], ["--nonsense"]])
def test_unusable_command_line_ends_with_64_and_a_reason(train: Train, arguments: list[str]) -> None:
    """argparse's own exit code, 2, is none of the contract's."""
    outcome = train(arguments)
    assert outcome.code == 64
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.INVALID_REQUEST


def test_missing_base_folder_ends_with_78_and_no_download(workshop: Workshop, train: Train) -> None:
    """A silent download at start-up is not what a folder's name asks for (failure 16)."""
    outcome = train(workshop.request(), BASE_MODEL="/nowhere/base")
    assert outcome.code == 78
    assert "/nowhere/base, which does not exist" in outcome.log


def test_base_that_is_not_sd15_ends_with_78_and_says_what_it_is(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "inpainting"))
    config = json.loads((base / "unet/config.json").read_text())
    (base / "unet/config.json").write_text(json.dumps({**config, "in_channels": 9}))
    outcome = train(workshop.request(), BASE_MODEL=str(base))
    assert outcome.code == 78
    assert "takes 9 channels" in outcome.log


def test_damaged_base_weights_end_with_78(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "damaged"))
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    outcome = train(workshop.request(), BASE_MODEL=str(base))
    assert outcome.code == 78
    assert "unet" in outcome.log


def test_base_with_a_config_that_is_no_json_ends_with_78(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "damaged"))
    (base / "vae/config.json").write_text("")
    outcome = train(workshop.request(), BASE_MODEL=str(base))
    assert outcome.code == 78
    assert "config.json that is no JSON" in outcome.log


@pytest.mark.parametrize(
    "name", ["", "unet", "unet/config.json", "vae/diffusion_pytorch_model.safetensors", "scheduler"]
)
def test_base_of_another_user_ends_with_a_sentence_about_permissions(tiny_base: Path, name: str) -> None:
    """Copied by root with a narrow umask it is whole, and copying it again would not help."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to others
        Path(folder).chmod(0o755)
        base = Path(shutil.copytree(tiny_base, Path(folder) / "base"))
        for path in (base, *base.rglob("*")):
            path.chmod(0o755)
        (base / name).chmod(0o700 if (base / name).is_dir() else 0o600)
        with as_somebody_else(), pytest.raises(ConfigurationError, match="no permission to read") as raised:
            find_base(str(base), None, torch.float32)
        assert f"to read {base / name};" in str(raised.value)


@contextmanager
def as_somebody_else() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_hub_that_does_not_answer_ends_with_69(workshop: Workshop, train: Train, tmp_path: Path) -> None:
    outcome = train(
        workshop.request(),
        BASE_MODEL="somebody/some-model",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hub"),
    )
    assert outcome.code == 69
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.DOWNLOAD_FAILED


def test_required_cuda_without_a_gpu_ends_with_78(workshop: Workshop, train: Train) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    outcome = train(workshop.request(), REQUIRE_CUDA="true")
    assert outcome.code == 78
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.GPU_UNAVAILABLE


@pytest.mark.parametrize(("name", "value"), [("LORA_RANK", "zero"), ("LORA_RANKS", "4")])
def test_bad_setting_ends_with_78_and_its_name(
    workshop: Workshop, train: Train, name: str, value: str
) -> None:
    outcome = train(workshop.request(), **{name: value})
    assert outcome.code == 78
    assert outcome.failure is not None
    assert name in outcome.failure.failure_reason


def test_unexpected_error_keeps_its_traceback_in_the_file_only(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LookupError("https://user:secret@host/a?signature=secret")

    monkeypatch.setattr("trainer.parts.attach_lora", fail)
    outcome = train(workshop.request())
    assert outcome.code == 70
    assert outcome.failure is not None
    written = workshop.folder().log.read_text()
    assert "Traceback" in written
    assert "Traceback" not in outcome.log
    for text in (written, outcome.log, outcome.failure.failure_reason):
        assert "LookupError" in text
        assert "secret" not in text


def test_full_disk_at_the_weights_is_a_storage_error(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swallowed error of saving would look like success (failure 13)."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.export.write_atomically", full)
    outcome = train(workshop.request())
    assert outcome.code == 69
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.STORAGE_ERROR
    assert "No space left" in outcome.failure.failure_reason
