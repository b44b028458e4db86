"""What is no whole base is refused with a sentence, and a hub that hangs holds nothing up."""

import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.parts.http_server import HttpRequest, HttpResponse, HttpServer, json_response
from tests.trainer.conftest import Workshop
from trainer.base_model import find_base, load_text_encoder, load_unet, load_vae
from trainer.errors import ConfigurationError, GpuFaultError

COMMIT = "0" * 40
TEXT_ENCODER = "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base, to be damaged."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def change(weights: Path, how: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(how(load_file(weights)), weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("load", "weights"),
    [
        (load_text_encoder, TEXT_ENCODER),
        (load_vae, VAE),
        (lambda base: load_unet(base, torch.float32), "unet/diffusion_pytorch_model.safetensors"),
    ],
    ids=["text encoder", "VAE", "UNet"],
)
def test_part_with_a_missing_tensor_is_refused(base: Path, load: Callable[[Path], Any], weights: str) -> None:
    """transformers fills it with random numbers, warns, and the training trains on noise."""
    change(base / weights, lambda tensors: dict(sorted(tensors.items())[1:]))
    with pytest.raises(ConfigurationError, match=f"The {weights.partition('/')[0]} of BASE_MODEL"):
        load(base)


def test_text_encoder_as_sd15_is_published_loads_whole(base: Path, tiny_base: Path) -> None:
    """Its names have a prefix, and position_ids are in it, which no newer library knows."""

    def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {f"text_model.{name.removeprefix('text_model.')}": one for name, one in tensors.items()}
        return {**named, "text_model.embeddings.position_ids": torch.arange(77)[None]}

    change(base / TEXT_ENCODER, as_published)
    assert same_tensors(load_text_encoder(base), load_text_encoder(tiny_base))


def test_vae_as_sd15_is_published_loads_whole(base: Path, tiny_base: Path) -> None:
    """Its attention has the names of before diffusers 0.12."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def as_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        for new_name, old_name in old.items():
            tensors = {name.replace(f".{new_name}.", f".{old_name}."): one for name, one in tensors.items()}
        return tensors

    change(base / VAE, as_published)
    assert any(".proj_attn." in name for name in load_file(base / VAE))
    assert same_tensors(load_vae(base), load_vae(tiny_base))


def same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    tensors = one.state_dict()
    return all(torch.equal(tensors[name], tensor) for name, tensor in other.state_dict().items())


def test_base_with_bin_files_only_is_told_that_safetensors_are_needed(base: Path) -> None:
    """It is whole, and copying it again would not help."""
    (base / TEXT_ENCODER).rename(base / "text_encoder/pytorch_model.bin")
    with pytest.raises(ConfigurationError, match=r"text_encoder of .* has no \.safetensors file"):
        find_base(str(base), None, torch.float32)


def test_gpu_that_fails_while_the_base_is_loaded_is_no_fault_of_the_base(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a damaged base it would end with 78, and no other node would be tried."""

    def fail(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nCompile with ...")

    monkeypatch.setattr("diffusers.models.unets.unet_2d_condition.UNet2DConditionModel.from_pretrained", fail)
    with pytest.raises(GpuFaultError, match=r"\(CUDA error: uncorrectable ECC error encountered\)"):
        load_unet(base, torch.float32)


@dataclass(frozen=True)
class Hub:
    """The model somebody/some-model on a hub whose files come a byte now and then."""

    url: str
    sending: threading.Event
    """Set when a file is on its way."""
    requests: list[str]

    def settings(self, cache: Path) -> dict[str, str]:
        return {"BASE_MODEL": "somebody/some-model", "HF_ENDPOINT": self.url, "HF_HOME": str(cache)}


@pytest.fixture
def hub(tiny_base: Path) -> Iterator[Hub]:
    sending, closing, requests = threading.Event(), threading.Event(), list[str]()
    files = [path for path in tiny_base.rglob("*") if path.is_file()]
    tree = [
        {
            "type": "file",
            "path": str(path.relative_to(tiny_base)),
            "size": path.stat().st_size,
            "oid": COMMIT,
        }
        for path in files
    ]

    def drip() -> Generator[bytes, None, None]:
        yield b"{"
        sending.set()
        while not closing.wait(0.2):
            yield b" "

    def answer(request: HttpRequest) -> HttpResponse:
        requests.append(request.path)
        if request.path.startswith("/api/models/somebody/some-model/tree/"):
            return json_response(tree)
        if request.path.startswith("/api/"):
            return json_response({"id": "somebody/some-model", "sha": COMMIT, "siblings": []})
        headers = {"ETag": f'"{COMMIT}"', "X-Repo-Commit": COMMIT, "X-Linked-Size": "1000000"}
        return HttpResponse(headers=headers, stream=None if request.method == "HEAD" else drip())

    server = HttpServer(answer)
    server.start()
    yield Hub(f"http://127.0.0.1:{server.port}", sending, requests)
    closing.set()
    server.stop()


def test_sigterm_while_the_hub_drips_ends_the_trainer_at_once(
    workshop: Workshop, hub: Hub, tmp_path: Path
) -> None:
    """The hub's library waits for every file that it has begun; a pod is killed before those are there."""
    process = workshop.start(workshop.request(), **hub.settings(tmp_path / "hub"))
    assert hub.sending.wait(60)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 75, log


def test_bad_picture_is_said_before_a_base_is_downloaded(
    workshop: Workshop, hub: Hub, tmp_path: Path
) -> None:
    """Gigabytes would come to a GPU that waits for them, and then be of no use."""
    process = workshop.start(bad_picture(workshop, tmp_path), **hub.settings(tmp_path / "hub"))
    _, log = process.communicate(timeout=60)
    assert process.returncode == 65, log
    assert hub.requests == []


def bad_picture(workshop: Workshop, folder: Path) -> list[str]:
    path = folder / "bad.jpg"
    path.write_bytes(workshop.pictures[0].read_bytes()[:2000])
    return workshop.request(image_paths=[str(path)])
