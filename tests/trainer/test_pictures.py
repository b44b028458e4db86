"""Pictures come on their own while the models load, and are cropped to a size that the UNet takes."""

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
from PIL import Image

from job_contract.request import TrainingRequest
from trainer.device import find_device
from trainer.errors import DownloadError, InvalidImageError
from trainer.imports import quick_imports
from trainer.interrupt import Interrupt
from trainer.pictures import ComingPictures, bucket_sizes, fit_picture
from trainer.plan import make_plan
from trainer.preparation import prepare
from trainer.run import _find_base
from trainer.settings import TrainerSettings

PLAN = make_plan(TrainingRequest.model_validate({"style_id": 1, "image_paths": ["a.jpg"]}), TrainerSettings())


def coming(folder: Path, paths: list[Path]) -> ComingPictures:
    fields = {
        "style_id": 1,
        "image_paths": [str(path) for path in paths],
        "captions": ["a hill"] * len(paths),
    }
    request = TrainingRequest.model_validate(fields)
    return ComingPictures(request, make_plan(request, TrainerSettings(resolution=128)), folder, Interrupt())


def test_pictures_and_captions_come_in_order_and_fitted(tmp_path: Path, pictures: list[Path]) -> None:
    with coming(tmp_path / "images", pictures) as ours:
        fitted, captions = ours.result()
    assert [picture.size for picture in fitted] == [(128, 128)] * len(pictures)
    assert captions == ["a hill"] * len(pictures)


def test_bad_picture_is_told_to_who_asks_for_the_pictures(tmp_path: Path) -> None:
    """Raised on a thread that nobody looks at, it would be lost."""
    (tmp_path / "bad.jpg").write_text("no picture")
    with coming(tmp_path / "images", [tmp_path / "bad.jpg"]) as ours, pytest.raises(InvalidImageError):
        ours.result()


def test_pictures_that_are_missing_and_those_with_bad_content_are_named_together(tmp_path: Path) -> None:
    """Missing ones hid the others: a person mended them, waited for a GPU, and was told of the rest."""
    paths = [tmp_path / name for name in ("bad.jpg", "missing.jpg", "empty.jpg")]
    paths[0].write_text("no picture")
    paths[2].touch()
    with coming(tmp_path / "images", paths) as ours, pytest.raises(InvalidImageError) as raised:
        ours.result()
    parts = str(raised.value).split("; ")
    named = [part.split()[0] for part in parts if part.startswith(str(tmp_path))]
    assert named == [str(path) for path in paths]


@pytest.fixture
def turned_bad(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ComingPictures, Callable[..., None]]]:
    """Pictures that are on their way, and a function after whose call it is known that one is bad."""
    turn, ours = threading.Event(), coming(tmp_path / "images", pictures)

    def fetch(*_: object) -> list[Path]:
        assert turn.wait(60)
        raise InvalidImageError("a.jpg is no picture")

    def turn_bad(*_: object) -> None:
        turn.set()
        wait([ours._coming], timeout=60)

    monkeypatch.setattr("trainer.pictures.fetch_images", fetch)
    with ours:
        yield ours, turn_bad
        turn.set()


def test_picture_that_proves_bad_while_the_hub_fails_is_what_is_said(
    turned_bad: tuple[ComingPictures, Callable[..., None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed download is tried again, three times on a GPU, and the picture would be as bad as before."""
    ours, turn_bad = turned_bad

    def find_base(*_: object) -> None:
        turn_bad()
        raise DownloadError("the hub does not answer")

    monkeypatch.setattr("trainer.run.find_base", find_base)
    with pytest.raises(InvalidImageError):
        _find_base(PLAN, find_device("no", require_cuda=False, deterministic=True), ours)


def test_picture_that_proves_bad_while_the_unet_loads_ends_the_loading(
    tiny_base: Path,
    turned_bad: tuple[ComingPictures, Callable[..., None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a slow volume the other parts would take their minutes all the same."""
    ours, turn_bad = turned_bad
    loaded = list[object]()
    monkeypatch.setattr("trainer.preparation.load_unet", turn_bad)
    monkeypatch.setattr("trainer.preparation.load_vae", loaded.append)
    with pytest.raises(InvalidImageError):
        prepare(
            ours, PLAN, [], tiny_base, find_device("no", require_cuda=False, deterministic=True), Interrupt()
        )
    assert not loaded


def test_downloads_of_a_killed_run_and_of_this_one_are_removed(tmp_path: Path, pictures: list[Path]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "0000").write_text("left by a killed run")
    with coming(folder, pictures) as ours:
        ours.result()
        assert not (folder / "0000").exists()
    assert not folder.exists()


def test_what_else_lies_among_the_downloads_is_not_removed(tmp_path: Path, pictures: list[Path]) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    for name in ("0000", "cat.jpg", "20251124.jpg", "00012"):
        (folder / name).write_text("mine")
    with coming(folder, pictures) as ours:
        ours.result()
    assert {path.name for path in folder.iterdir()} == {"cat.jpg", "20251124.jpg", "00012"}


def test_nothing_waits_for_the_pictures_when_the_start_fails(tmp_path: Path) -> None:
    """A GPU that is missing is said at once, though a host is slow."""
    with socket.create_server(("127.0.0.1", 0)) as host:
        host.settimeout(60)
        url = f"http://127.0.0.1:{host.getsockname()[1]}/a.jpg"
        request = TrainingRequest.model_validate({"style_id": 1, "image_paths": [url]})
        interrupt = Interrupt()
        ours = ComingPictures(request, make_plan(request, TrainerSettings()), tmp_path / "images", interrupt)
        asked: list[socket.socket] = []

        def fail_once_the_host_is_asked() -> None:
            asked.append(host.accept()[0])
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), ours:
            fail_once_the_host_is_asked()
        with asked[0]:
            assert any(thread.name.startswith("pictures") for thread in threading.enumerate())
            interrupt.event.set()


def test_collector_works_again_after_imports_that_fail() -> None:
    """Without it a long training would fill the memory with its cycles."""
    with pytest.raises(ZeroDivisionError), quick_imports():
        _ = 1 / gc.isenabled()  # which is False in here
    assert gc.isenabled()


def test_buckets_have_at_most_the_squares_pixels_in_steps_of_64() -> None:
    sizes = bucket_sizes(512)
    assert (512, 512) in sizes
    assert (640, 384) in sizes
    assert all(width % 64 == height % 64 == 0 for width, height in sizes)
    assert all(width * height <= 512 * 512 for width, height in sizes)
    assert {(height, width) for width, height in sizes} == set(sizes)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((800, 800), (512, 512)),
        ((1200, 720), (640, 384)),
        ((720, 1200), (384, 640)),
        ((3000, 300), (768, 320)),
    ],
)
def test_picture_goes_to_the_bucket_nearest_its_shape(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    picture = fit_picture(Image.new("RGB", size), 512, aspect_buckets=True)
    assert picture.size == fitted
