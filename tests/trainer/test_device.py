"""What a device says of itself."""

import pytest
import torch

from trainer.device import Device


def test_peak_memory_of_a_gpu_is_what_its_allocator_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocations alone leave out a CUDA graph's pool, which a smaller GPU would have to have too."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3000 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 5000 * 2**20)
    assert Device(torch.device("cuda", 0), torch.float16, "GPU", 8192).peak_memory_mib() == 5000
