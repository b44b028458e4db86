"""What is no whole base is refused with a sentence, and a hub that hangs holds nothing up."""

import json
import logging
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

from tests.parts.http_server import (
    DropConnectionError,
    HttpRequest,
    HttpResponse,
    HttpServer,
    json_response,
)
from tests.parts.ports import free_port
from tests.trainer.conftest import Workshop, in_the_hubs_cache
from trainer.base_model import (
    find_base,
    load_noise_scheduler,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
)
from trainer.errors import ConfigurationError, DownloadError, GpuFaultError

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


@pytest.mark.parametrize("content", [b"", b"\xff" * 5000, None], ids=["empty", "random", "cut"])
def test_damaged_text_encoder_is_the_bases_fault(base: Path, content: bytes | None) -> None:
    """As the software's it would be tried three times more, on a GPU each."""
    weights = base / TEXT_ENCODER
    weights.write_bytes(weights.read_bytes()[:10_000] if content is None else content)
    with pytest.raises(ConfigurationError, match=r"text_encoder of BASE_MODEL .* cannot be loaded"):
        load_text_encoder(base)


@pytest.mark.parametrize(
    ("name", "load", "value"),
    [
        ("text_encoder/config.json", load_text_encoder, {"num_attention_heads": "x"}),
        ("text_encoder/config.json", load_text_encoder, {"num_attention_heads": 0}),
        ("scheduler/scheduler_config.json", load_noise_scheduler, {"beta_schedule": "steep"}),
        ("scheduler/scheduler_config.json", load_noise_scheduler, {"beta_start": "low"}),
    ],
)
def test_configuration_of_the_wrong_values_is_the_bases_fault(
    base: Path, name: str, load: Callable[[Path], Any], value: dict[str, object]
) -> None:
    configure(base / name, value)
    with pytest.raises(ConfigurationError, match=f"The {name.partition('/')[0]} of BASE_MODEL"):
        load(base)


def configure(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"", b"\xff"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "scheduler"])
def test_configuration_that_is_none_is_named(base: Path, part: str, content: bytes) -> None:
    """For a scheduler's, the person was sent to the models volume, and to a hub that nobody asked."""
    (config,) = (base / part).glob("*config.json")
    config.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"BASE_MODEL: {config} is no"):
        find_base(str(base), None, torch.float32)


@pytest.mark.parametrize(
    ("files", "content"),
    [
        (("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"), None),
        (("tokenizer.json", "vocab.json", "merges.txt"), None),
        (("tokenizer_config.json",), None),
        (("tokenizer.json",), b"{}"),
        (("tokenizer.json",), b"{"),
    ],
)
def test_tokenizer_that_is_not_whole_is_named(
    base: Path, files: tuple[str, ...], content: bytes | None
) -> None:
    """Of no files transformers makes one that takes every word for the same, and captions of any length."""
    for name in files:
        (base / "tokenizer" / name).unlink()
        if content is not None:
            (base / "tokenizer" / name).write_bytes(content)
    with pytest.raises(ConfigurationError, match="The tokenizer of BASE_MODEL"):
        load_tokenizer(base)


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        (
            "unet/config.json",
            {"down_block_types": ["AttnDownBlock2D"] * 4},
            "AttnDownBlock2D among its down_",
        ),
        ("unet/config.json", {"up_block_types": ["SkipUpBlock2D"] * 4}, "SkipUpBlock2D among its up_"),
        ("unet/config.json", {"up_block_types": 4}, "4 among its up_block_types"),
        ("unet/config.json", {"mid_block_type": "UNetMidBlock2D"}, "mid_block_type UNetMidBlock2D"),
        ("unet/config.json", {"dual_cross_attention": True}, "dual_cross_attention True"),
        ("unet/config.json", {"only_cross_attention": True}, "only_cross_attention True"),
        ("unet/config.json", {"upcast_attention": True}, "upcast_attention True"),
        ("unet/config.json", {"attention_type": "gated"}, "attention_type gated"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type timestep"),
        ("unet/config.json", {"addition_embed_type": "text"}, "addition_embed_type text"),
        ("unet/config.json", {"encoder_hid_dim": 32}, "encoder_hid_dim 32"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "encoder_hid_dim_type text_proj"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim 256"),
        ("unet/config.json", {"resnet_time_scale_shift": "scale_shift"}, "shift scale_shift"),
        ("unet/config.json", {"out_channels": 8}, "out_channels 8"),
        ("unet/config.json", {"dropout": 0.1}, "dropout 0.1"),
        ("vae/config.json", {"scaling_factor": "x"}, "scaling_factor is no number"),
        ("text_encoder/config.json", {"max_position_embeddings": 248}, "does not read 77 tokens"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "the prediction_type sample"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "not have 1000 timesteps"),
    ],
)
def test_base_of_another_kind_is_refused_by_name(
    base: Path, name: str, values: dict[str, object], fault: str
) -> None:
    """It was trained on without a word, as what it is not, or ended in an error of some library's."""
    configure(base / name, values)
    with pytest.raises(ConfigurationError, match=f"is not SD 1.5: .*{fault}"):
        find_base(str(base), None, torch.float32)


@pytest.mark.parametrize("values", [{"prediction_type": "v_prediction"}, {"prediction_type": "epsilon"}])
def test_both_predictions_of_sd1_are_taken(base: Path, values: dict[str, object]) -> None:
    configure(base / "scheduler/scheduler_config.json", values)
    assert find_base(str(base), None, torch.float32) == base


def test_unet_configuration_of_sd15_as_it_is_published_is_taken(base: Path) -> None:
    """It is older than most of the settings; some conversions write null for one."""
    config = json.loads((base / "unet/config.json").read_text())
    published = {
        "in_channels",
        "out_channels",
        "cross_attention_dim",
        "down_block_types",
        "up_block_types",
        "sample_size",
        "block_out_channels",
        "attention_head_dim",
        "layers_per_block",
        "norm_num_groups",
        "act_fn",
        "norm_eps",
    }
    short = {name: value for name, value in config.items() if name in published}
    (base / "unet/config.json").write_text(json.dumps({**short, "upcast_attention": None}))
    assert find_base(str(base), None, torch.float32) == base
    assert same_tensors(load_unet(base, torch.float32), load_unet(base, torch.float32))


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
    answer: Callable[[HttpRequest], HttpResponse]

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
    yield Hub(f"http://127.0.0.1:{server.port}", sending, requests, answer)
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
    # Gigabytes that come without a word look like a trainer that hangs (failure 16).
    assert "Downloading somebody/some-model into" in log


def test_bad_picture_is_said_before_a_base_is_downloaded(
    workshop: Workshop, hub: Hub, tmp_path: Path
) -> None:
    """Gigabytes would come to a GPU that waits for them, and then be of no use."""
    process = workshop.start(bad_picture(workshop, tmp_path), **hub.settings(tmp_path / "hub"))
    _, log = process.communicate(timeout=60)
    assert process.returncode == 65, log
    assert hub.requests == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize("speaks", [False, True], ids=["of nothing", "of its files only"])
def test_hub_that_accepts_and_says_nothing_is_a_download_that_failed(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speaks: bool
) -> None:
    """Its library sets no time for an answer; a GPU waited until the Job's deadline."""
    closing = threading.Event()

    def silent(request: HttpRequest) -> HttpResponse:
        if speaks and (request.method == "HEAD" or request.path.startswith("/api/")):
            return hub.answer(request)
        closing.wait()
        raise DropConnectionError

    monkeypatch.setattr(
        "trainer.hub._TIMEOUTS_SECONDS", dict.fromkeys(("connect", "read", "write", "pool"), 0.2)
    )
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    server = HttpServer(silent)
    server.start()
    url = f"http://127.0.0.1:{server.port}"
    files = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    try:
        with pytest.raises(DownloadError, match="somebody/some-model could not be downloaded"):
            find_base("somebody/some-model", None, torch.float32)
    finally:
        closing.set()
        server.stop()


@pytest.fixture
def cached_base(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """somebody/some-model in the cache of a hub that does not answer."""
    base = in_the_hubs_cache(shutil.copytree(tiny_base, tmp_path / "base"), tmp_path / "cache", COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{free_port()}")
    return base


def test_whole_base_in_the_cache_needs_no_hub(cached_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert find_base("somebody/some-model", None, torch.float32) == cached_base
    assert caplog.messages == []


def test_half_a_base_in_the_cache_of_a_hub_that_is_down_is_tried_again(cached_base: Path) -> None:
    """The library hands over what an earlier download began, and the base was called none, for good."""
    (cached_base / "vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(DownloadError, match="could not be downloaded"):
        find_base("somebody/some-model", None, torch.float32)


def test_base_that_a_cache_without_its_hub_lacks_is_not_tried_again(
    cached_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE is set"):
        find_base("somebody/other-model", None, torch.float32)
    assert find_base("somebody/some-model", None, torch.float32) == cached_base


def test_name_that_no_hub_has_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="is no folder and no name of a hub's"):
        find_base("some body/some model", None, torch.float32)


def bad_picture(workshop: Workshop, folder: Path) -> list[str]:
    path = folder / "bad.jpg"
    path.write_bytes(workshop.pictures[0].read_bytes()[:2000])
    return workshop.request(image_paths=[str(path)])
