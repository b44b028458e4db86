"""What is made of a GPU that torch finds; its few operations are computed on the CPU here."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.device import Device, find_device
from trainer.errors import ConfigurationError, GpuFaultError
from trainer.settings import MixedPrecision


def find(precision: MixedPrecision) -> Device:
    return find_device(precision, require_cuda=True, deterministic=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with one, that has bf16; tests may change it."""
    ones = torch.ones
    properties = SimpleNamespace(name="Some GPU", total_memory=24 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda enabled: None)
    return monkeypatch


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("auto", torch.float16), ("fp16", torch.float16), ("bf16", torch.bfloat16), ("no", torch.float32)],
)
def test_gpu_trains_in_the_precision_that_is_set_and_by_default_in_fp16(
    precision: MixedPrecision, dtype: torch.dtype
) -> None:
    """In float32 a step takes twice the memory and several times as long."""
    assert find(precision) == Device(torch.device("cuda", 0), dtype, "Some GPU", 24 * 1024)


def test_gpu_without_bf16_is_not_asked_for_it(gpu: pytest.MonkeyPatch) -> None:
    """torch emulates it there, at a fraction of the speed."""
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert find("auto").dtype == torch.float16
    with pytest.raises(ConfigurationError, match="Some GPU has no bf16"):
        find("bf16")


def test_gpu_that_computes_wrongly_trains_nothing(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch, "ones", lambda *shape, device: torch.zeros(*shape))
    with pytest.raises(GpuFaultError, match="computes wrongly"):
        find("auto")


def test_gpu_that_fails_at_once_is_said_to(gpu: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal instruction\nmore")

    gpu.setattr(torch, "ones", fail)
    with pytest.raises(GpuFaultError, match=r"does not work: CUDA error: an illegal instruction\. Another"):
        find("auto")
