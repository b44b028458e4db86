"""Whole trainings by the command line: what they leave behind, and how each kind of failure ends."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load as load_whole
from safetensors.torch import load_file

from job_contract.outcome import FailureCode
from job_contract.progress import parse_progress
from tests.trainer.conftest import Outcome, Train, Workshop, in_the_hubs_cache
from tiny_base import build_tiny_base
from trainer.base_model import find_base
from trainer.errors import ConfigurationError
from trainer.examples import Latents, encode_pictures


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


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer"])
def test_damaged_weights_are_no_finished_training(workshop: Workshop, train: Train, damage: str) -> None:
    """`completed` means that the file loads, and as what was trained."""
    train(workshop.request())
    weights = workshop.folder().weights
    whole = weights.read_bytes()
    flipped = whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:]
    weights.write_bytes({"flipped": flipped, "cut": whole[:-9], "longer": whole + b"x"}[damage])
    outcome = train(workshop.request())
    assert outcome.code == 0, outcome.log
    assert "is cut off or damaged and is made again" in outcome.log
    assert load_file(weights).keys() == load_whole(whole).keys()
    assert body(weights.read_bytes()) == body(whole)


def body(safetensors: bytes) -> bytes:
    return safetensors[8 + int.from_bytes(safetensors[:8], "little") :]


def test_another_base_at_the_same_path_is_another_training(
    workshop: Workshop, train: Train, tmp_path: Path
) -> None:
    """A finished one was handed out for it, and one that was not went on over another UNet."""
    base = build_tiny_base(tmp_path / "base", seed=1)
    arguments = workshop.request()
    train(arguments, BASE_MODEL=str(base))
    first = body(workshop.folder().weights.read_bytes())
    shutil.rmtree(base)
    build_tiny_base(base, seed=2)
    outcome = train(arguments, BASE_MODEL=str(base))
    assert "was trained on another base and is made again" in outcome.log
    assert "starting afresh" in outcome.log
    assert body(workshop.folder().weights.read_bytes()) != first


def test_finished_training_needs_no_base_to_be_known_as_that(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path
) -> None:
    """A copy of the same base is the same base; and for one that is not here nothing is downloaded."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base", copy_function=shutil.copyfile))
    arguments = workshop.request()
    train(arguments, BASE_MODEL=str(base))
    shutil.rmtree(base)
    assert "trained already" in train(arguments, BASE_MODEL=str(base)).log
    shutil.copytree(tiny_base, base, copy_function=shutil.copyfile)
    assert "trained already" in train(arguments, BASE_MODEL=str(base)).log


def test_hub_branch_that_moved_is_another_training(
    workshop: Workshop, train: Train, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, base = workshop.request(), {"BASE_MODEL": "somebody/some-model"}
    for number, commit in enumerate(("1" * 40, "2" * 40)):
        copy = Path(shutil.copytree(tiny_base, tmp_path / f"base{number}"))
        in_the_hubs_cache(copy, tmp_path / "hub", commit)
        outcome = train(arguments, **base)
        assert outcome.code == 0, outcome.log
        assert "trained already" not in outcome.log
    assert "trained already" in train(arguments, **base).log


def test_edited_caption_beside_a_picture_is_another_training(
    workshop: Workshop, train: Train, tmp_path: Path
) -> None:
    picture = Path(shutil.copy(workshop.pictures[0], tmp_path / "picture.jpg"))
    arguments = ["--style-id", "1", "--images", str(picture), "--epochs", "1"]
    for caption in ("a cat", "a dog that runs"):
        picture.with_suffix(".txt").write_text(caption)
        assert "trained already" not in train(arguments).log
    assert "trained already" in train(arguments).log


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


def test_memory_that_does_not_hold_vae_and_unet_encodes_without_the_unet(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At RESOLUTION=1024 the VAE takes more than a step does; the weights are the same."""
    train(workshop.request())
    expected = body(workshop.folder().weights.read_bytes())
    shutil.rmtree(workshop.folder().root)
    moves = list[torch.device | str]()
    where_it_was = list[torch.device | str]()

    def encode(*arguments: Any, **options: Any) -> list[Latents]:
        where_it_was.append(moves[-1])
        if len(where_it_was) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode_pictures(*arguments, **options)

    def move(unet: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
        moves.append(device)
        return unet

    monkeypatch.setattr("trainer.preparation.encode_pictures", encode)
    monkeypatch.setattr("diffusers.UNet2DConditionModel.to", move)
    outcome = train(workshop.request())
    assert outcome.code == 0, outcome.log
    assert "encoded without the UNet on it" in outcome.log
    device = torch.device("cpu")  # the training's own, whose name differs from what is the CPU for certain
    assert where_it_was == [device, "cpu"]
    assert moves[-1] == device
    assert body(workshop.folder().weights.read_bytes()) == expected


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


def test_pictures_beside_the_weights_are_never_another_trainings(workshop: Workshop, train: Train) -> None:
    """The samples of the style's last training stayed, and went to S3 with the new weights."""
    train(workshop.request(num_epochs=1), SAMPLE_PROMPTS='["a cat"]', SAMPLE_STEPS="1")
    assert workshop.folder().samples.exists()
    train(workshop.request(num_epochs=2), SAMPLE_PROMPTS="[]")
    assert not workshop.folder().samples.exists()
    assert "samples.png" not in workshop.folder().model_card.read_text()


@pytest.mark.parametrize("name", ["images", ".downloads", "my pictures"])
def test_pictures_in_the_styles_own_folder_are_trained_and_still_there(
    workshop: Workshop, train: Train, name: str
) -> None:
    """models/1/images is where one would put them, and downloads had that name: all was removed."""
    place = workshop.folder().root / name
    place.mkdir(parents=True)
    pictures = [Path(shutil.copy(picture, place)) for picture in workshop.pictures]
    outcome = train(["--style-id", "1", "--images", str(place), "--epochs", "1"])
    assert outcome.code == (65 if name == ".downloads" else 0), outcome.log
    assert all(picture.exists() for picture in pictures)


@pytest.mark.parametrize(
    "name", ["loss.png", "samples.png", "checkpoints/samples/epoch-0000.png", "x/../loss.png", "README.md"]
)
def test_what_the_trainer_writes_is_not_taken_for_a_picture(
    workshop: Workshop, train: Train, name: str
) -> None:
    """--images models/1 found the plot of the training before, and it was written over while it was read."""
    path = workshop.folder().root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(workshop.pictures[0], path)
    outcome = train(workshop.request(image_paths=[str(workshop.pictures[1]), str(path)]))
    assert outcome.code == 65
    assert outcome.failure is not None
    assert f"{name} is where the trainer has its own files" in outcome.failure.failure_reason
    assert path.exists()


def test_somebody_elses_files_in_the_style_folder_are_neither_removed_nor_written_over(
    workshop: Workshop, train: Train
) -> None:
    folder = workshop.folder()
    folder.sample_rows.mkdir(parents=True)
    theirs = [folder.model_card, folder.loss_plot, folder.samples, folder.checkpoints / "notes.txt"]
    theirs += [folder.sample_rows / "epoch-0001-nice.png", folder.root / "lora_weights.safetensors.kept-1"]
    theirs.append(folder.weights)
    for path in theirs:
        path.write_text("mine")
    settings = {"SAMPLE_PROMPTS": '["a cat"]', "SAMPLE_STEPS": "1"}
    for epochs in (1, 2):  # the second one clears away what the first one left
        outcome = train(workshop.request(num_epochs=epochs), **settings)
        assert outcome.result is not None, outcome.log
        assert [note.partition(" could")[0] for note in outcome.result.notes] == [
            "loss.png",
            "samples.png",
            "README.md",
        ]
        assert all("is kept; move it away" in note for note in outcome.result.notes)
        assert folder.weights.exists()
    theirs[theirs.index(folder.weights)] = folder.root / "lora_weights.safetensors.kept-2"
    assert {path.read_text() for path in theirs} == {"mine"}
    assert "trained already" in train(workshop.request(num_epochs=2), **settings).log
    for path in theirs:
        path.unlink()
    for epochs in (1, 2):  # the second one writes over the trainer's own
        outcome = train(workshop.request(num_epochs=epochs), **settings)
        assert outcome.result is not None
        assert outcome.result.notes == []


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


@pytest.mark.parametrize("path", ["/", "."])
def test_path_without_a_file_name_ends_with_65(workshop: Workshop, train: Train, path: str) -> None:
    """No caption's name can be made of it, which was a failure of the software."""
    outcome = train(workshop.request(image_paths=[path]))
    assert outcome.code == 65, outcome.log


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("caf\udce9.jpg", r"caf\udce9.jpg is not UTF-8"),
        ("~nosuchuser/a.jpg", "~nosuchuser/a.jpg begins with the home folder of a user that does not exist"),
        ("x" * 300, "x cannot be read (File name too long)"),
    ],
    ids=["not UTF-8", "nobody's home", "too long"],
)
def test_path_that_cannot_be_used_ends_with_65_and_its_name(
    workshop: Workshop, tmp_path: Path, name: str, said: str
) -> None:
    """They were failures of the software or of the models volume, which would be tried again in vain."""
    path = name if name.startswith("~") else str(tmp_path / name)
    outcome = run_as_process(workshop, ["--style-id", "1", "--images", path, "--epochs", "1"])
    assert outcome.code == 65, outcome.log
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.INVALID_IMAGES
    assert said in outcome.failure.failure_reason


def run_as_process(workshop: Workshop, arguments: list[str]) -> Outcome:
    """Run a trainer whose log has characters that the tests' own processes cannot hand to each other."""
    process = workshop.start(arguments)
    _, log = process.communicate(timeout=60)
    return workshop.outcome(process.returncode, log)


def test_folder_with_a_name_that_is_not_utf8_ends_with_65(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copy(workshop.pictures[0], tmp_path / "caf\udce9.jpg")
    outcome = run_as_process(workshop, ["--style-id", "1", "--images", str(tmp_path)])
    assert outcome.code == 65, outcome.log
    assert r"caf\udce9.jpg is not UTF-8" in outcome.log


def test_full_memory_while_a_picture_is_decoded_is_out_of_memory(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is good, so another try, on another machine, may do."""

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    outcome = train(workshop.request())
    assert outcome.code == 70
    assert outcome.failure is not None
    assert outcome.failure.failure_code is FailureCode.OUT_OF_MEMORY


@pytest.mark.parametrize("word", ["two\nwords", "a`tick", "``"])
def test_trigger_word_does_not_break_the_model_card(workshop: Workshop, train: Train, word: str) -> None:
    train(workshop.request(trigger_word=word))
    card = workshop.folder().model_card.read_text()
    said = " ".join(word.split())
    fence = "```" if said == "``" else "``" if "`" in said else "`"
    space = " " if "`" in said else ""
    assert f"Put its trigger word, {fence}{space}{said}{space}{fence}, into the prompt." in card


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
    assert "vae/config.json is no JSON" in outcome.log


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
