"""What a device says of itself."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.trainer.conftest import Train, Workshop
from trainer.device import Device, compute_deterministically, keep_to_cpu_limit


def test_peak_memory_of_a_gpu_is_what_its_allocator_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocations alone leave out a CUDA graph's pool, which a smaller GPU would have to have too."""
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3000 * 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 5000 * 2**20)
    assert Device(torch.device("cuda", 0), torch.float16, "GPU", 8192).peak_memory_mib() == 5000


@pytest.mark.parametrize(
    ("visible", "code"),
    [(None, "GPU_UNAVAILABLE"), ("0", "GPU_UNAVAILABLE"), ("", None), ("-1", None)],
)
def test_gpu_that_cuda_cannot_use_is_a_fault_unless_it_was_hidden(
    visible: str | None,
    code: str | None,
    train: Train,
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a node with a broken driver a training would take days on the CPU; who hides a GPU wants that."""
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("trainer.device._DEVICE_FILES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    outcome = train(workshop.request(num_epochs=1), **settings)
    assert (outcome.failure and outcome.failure.failure_code) == code, outcome.log
    assert outcome.code == (70 if code else 0)


@pytest.mark.parametrize(
    ("cpu_max", "threads"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 3), ("6400000 100000", 3), (None, 3)],
)
def test_container_with_a_cpu_limit_gets_no_thread_beyond_it(
    cpu_max: str | None, threads: int, tmp_path: Path
) -> None:
    """A thread for each of the node's CPUs uses the limit up in an instant, and then all of them wait."""
    limit = tmp_path / "cpu.max"
    if cpu_max:
        limit.write_text(f"{cpu_max}\n")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        keep_to_cpu_limit(limit)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def deterministic() -> Iterator[None]:
    """As on a GPU by default, and afterwards as before."""
    before = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    compute_deterministically()
    yield
    torch.set_deterministic_debug_mode("default")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # it has it
    if before is None:
        del os.environ["CUBLAS_WORKSPACE_CONFIG"]


@pytest.mark.usefixtures("deterministic")
def test_training_needs_no_operator_that_has_no_deterministic_kind(train: Train, workshop: Workshop) -> None:
    """torch refuses such an operator, most of them on CUDA only; and merely warned, attention takes none."""
    outcome = train(workshop.request(), SAMPLE_PROMPTS='["a house"]', SAMPLE_STEPS="1")
    assert outcome.code == 0, outcome.log
    assert torch.get_deterministic_debug_mode() == 2
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(2, 2).put_(torch.tensor([0]), torch.ones(1))


def test_fault_that_a_library_meets_is_said_as_the_gpus(
    train: Train, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`")

    monkeypatch.setattr("trainer.parts.attach_lora", fault)
    outcome = train(workshop.request())
    assert outcome.failure is not None
    assert outcome.failure.failure_code == "GPU_UNAVAILABLE"


def test_fault_of_the_gpu_is_said_as_one(
    train: Train, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error of the software nobody would look at the node."""

    def fault(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr("trainer.parts.attach_lora", fault)
    outcome = train(workshop.request())
    assert outcome.failure is not None
    assert outcome.failure.failure_code == "GPU_UNAVAILABLE"
    assert "an illegal memory access was encountered); another node" in outcome.failure.failure_reason
