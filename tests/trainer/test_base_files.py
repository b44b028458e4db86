"""A base on a slow disk comes into memory while Python imports, and what goes wrong there ends nothing."""

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.trainer.conftest import in_the_hubs_cache
from trainer.base_files import find_identity, identity_of, read_ahead, weights_file
from trainer.settings import MixedPrecision

COMMIT = "0" * 40


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, with an fp16 UNet beside the full one, that is on the disk only."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    unet = base / "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(unet, unet.with_suffix(".fp16.safetensors"))
    # Not one of the weights: the kernel may begin to read what is asked for in vain.
    probe = tmp_path / "probe"
    probe.write_bytes(bytes(4096))
    for path in (probe, *base.rglob("*.safetensors")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _is_in_memory(probe):
        pytest.skip("this file system keeps its files in memory")
    return base


def in_memory(folder: Path) -> set[str]:
    """Return the weights under folder that are in the page cache, by their last byte; ask once only."""
    files = (path for path in folder.rglob("*.safetensors") if path.is_file())
    return {str(path.relative_to(folder)) for path in files if _is_in_memory(path)}


def _is_in_memory(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(1)], path.stat().st_size - 1, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False


def wait_for_the_reading() -> None:
    for thread in threading.enumerate():
        if thread.name == "read-ahead":
            thread.join(20)
            assert not thread.is_alive()


@pytest.mark.parametrize(("precision", "variant"), [("auto", ".fp16"), ("bf16", "")])
def test_weights_in_a_folder_come_into_memory_and_only_one_unet(
    base: Path, precision: MixedPrecision, variant: str
) -> None:
    """The other UNet's gigabytes would take the disk from the one that is loaded."""
    read_ahead(str(base), None, precision)
    wait_for_the_reading()
    assert in_memory(base) == {
        f"unet/diffusion_pytorch_model{variant}.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_weights_in_the_hubs_cache_come_into_memory(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    """The chart's default: a claim that holds what was downloaded once."""
    snapshot = in_the_hubs_cache(base, tmp_path / "hub", COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    read_ahead("somebody/some-model", revision, "no")
    wait_for_the_reading()
    assert len(in_memory(snapshot)) == 3


@pytest.mark.parametrize("name", ["/nowhere/base", "somebody/never-downloaded", "no/name/of/a/hub's"])
def test_base_that_is_not_here_is_left_to_those_who_say_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    read_ahead(name, None, "auto")


def test_weights_that_cannot_be_read_do_not_keep_the_others_back(base: Path) -> None:
    """An error on the thread would be a traceback in the log, beside the sentence that says it."""
    unet = base / "unet/diffusion_pytorch_model.safetensors"
    unet.unlink()
    unet.mkdir()
    (base / "vae/diffusion_pytorch_model.safetensors").unlink()
    read_ahead(str(base), None, "no")
    wait_for_the_reading()
    assert in_memory(base / "text_encoder") == {"model.safetensors"}


@pytest.mark.parametrize(
    ("there", "half", "taken"),
    [
        (("", ".fp16"), True, ".fp16"),
        (("", ".fp16"), False, ""),
        (("",), True, ""),
        ((".fp16",), False, ".fp16"),
        ((), True, ""),
    ],
)
def test_fp16_weights_are_taken_where_they_are_wanted_or_alone(
    tmp_path: Path, there: tuple[str, ...], half: bool, taken: str
) -> None:
    (tmp_path / "unet").mkdir()
    for variant in there:
        (tmp_path / f"unet/diffusion_pytorch_model{variant}.safetensors").touch()
    file = weights_file(tmp_path, "unet", half=half)
    assert file == tmp_path / f"unet/diffusion_pytorch_model{taken}.safetensors"


def test_reading_begins_before_torch_is_imported(base: Path) -> None:
    """After it nothing would be gained: its import is half of the time that the reading has."""
    code = (
        "import sys; from trainer.base_files import read_ahead; import trainer.__main__;"
        f"read_ahead({str(base)!r}, None, 'auto'); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_identity_is_that_of_every_copy_and_of_no_other_base(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    """Without it a training went on over another UNet, or was taken for finished."""
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copy / name, (0, 0))
    assert identity_of(copy, "auto") == identity_of(tiny_base, "auto")
    content = bytearray((copy / name).read_bytes())
    for place in range(len(content) // 2, len(content), 256):  # as another training's numbers
        content[place] ^= 1
    (copy / name).write_bytes(content)
    assert identity_of(copy, "auto") != identity_of(tiny_base, "auto")


def test_identity_counts_weights_in_several_files(tiny_base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base, tmp_path / "copy"))
    whole = copy / "unet/diffusion_pytorch_model.safetensors"
    shards = [whole.with_stem(f"{whole.stem}-0000{number}-of-00002") for number in (1, 2)]
    whole.rename(shards[0])
    shards[1].write_bytes(b"one")
    before = identity_of(copy, "auto")
    shards[1].write_bytes(b"two")
    assert identity_of(copy, "auto") != before


def test_identity_of_a_hubs_base_is_its_commit_and_none_where_it_never_was(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub is not asked whether there is anything to do."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_identity("somebody/some-model", None, "auto") is None
    assert find_identity("/nowhere/base", None, "auto") is None
    in_the_hubs_cache(Path(shutil.copytree(tiny_base, tmp_path / "base")), tmp_path / "hub", COMMIT)
    assert find_identity("somebody/some-model", None, "auto") == COMMIT
