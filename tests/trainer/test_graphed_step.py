"""A recorded step is the eager one, or is not used. What needs a GPU is in test_gpu.py."""

import logging
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.conftest import Train, Workshop
from tests.trainer.rig import IMAGES, Rig
from trainer.gradient_step import MicroBatch
from trainer.graphed_step import (
    MIN_STEPS,
    GraphedStep,
    Recorder,
    graph_pays,
    record_cuda_graph,
    relative_difference,
)
from trainer.settings import CudaGraphs

ON = "The steps run as a CUDA graph from now on (its gradients are exactly the eager step's)."


class CpuRecorder:
    """Records as a graph does: a repetition runs on the same buffers and fills the same result."""

    def __init__(self) -> None:
        self.repetitions = 0

    def __call__(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = function()

        def replay() -> None:
            self.repetitions += 1
            result.copy_(function())

        return replay, result


def graphed(rig: Rig, record: Recorder, *, exact: bool = True) -> GraphedStep:
    return GraphedStep(rig.parts.eager_step(), rig.parts.adapter.gradients, record, exact=exact)


def trained(
    base: Path, record: Recorder | None = None, dtype: torch.dtype = torch.float32, **request: Any
) -> Rig:
    rig = Rig(base, dtype, **request)
    rig.training(gradient_step=graphed(rig, record) if record else None).train()
    return rig


def assert_same_training(one: Rig, other: Rig) -> None:
    assert torch.equal(one.weights, other.weights)
    assert [metrics.loss for metrics in one.epochs] == [metrics.loss for metrics in other.epochs]


@pytest.mark.parametrize(
    ("setting", "is_cuda", "processes", "steps_left", "pays"),
    [
        ("auto", True, 1, MIN_STEPS, True),
        ("off", True, 1, MIN_STEPS, False),
        ("auto", False, 1, MIN_STEPS, False),
        ("auto", True, 2, MIN_STEPS, False),
        ("auto", True, 1, MIN_STEPS - 1, False),
    ],
)
def test_graph_is_chosen_only_where_it_can_pay(
    setting: CudaGraphs, is_cuda: bool, processes: int, steps_left: int, pays: bool
) -> None:
    assert graph_pays(setting, is_cuda=is_cuda, processes=processes, steps_left=steps_left) is pays


@pytest.mark.parametrize("batch_size", [1, 3])
def test_recorded_steps_train_the_same_weights(tiny_base: Path, batch_size: int) -> None:
    """With batches of three, the fourth image is a batch of another shape, which is not recorded."""
    record = CpuRecorder()
    rig = trained(tiny_base, record, num_epochs=3, batch_size=batch_size)
    assert_same_training(rig, trained(tiny_base, num_epochs=3, batch_size=batch_size))
    # Without the first step of the shape; the second one is repeated only to compare.
    assert record.repetitions == 3 * (IMAGES if batch_size == 1 else 1) - 1


@pytest.mark.parametrize("seed", range(6))
def test_small_last_batch_is_never_what_is_recorded(tiny_base: Path, seed: int) -> None:
    """With 11 images in batches of ten, in half of the epochs the batch of one comes first."""
    rig, record = Rig(tiny_base, num_epochs=3, batch_size=3, seed=seed), CpuRecorder()
    step, recorded = graphed(rig, record), set()

    def watched(batch: MicroBatch, divisor: int) -> Tensor:
        before = record.repetitions
        loss = step(batch, divisor)
        if record.repetitions > before:
            recorded.add(len(batch.latents))
        return loss

    rig.training(gradient_step=watched).train()
    assert recorded == {3}


@pytest.mark.parametrize("exact", [True, False])
def test_recording_that_rounds_otherwise_is_not_repeated_where_bits_count(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, exact: bool
) -> None:
    """A resumed training takes eager steps where the uninterrupted one repeated its recording."""
    rig, record = Rig(tiny_base), CpuRecorder()

    def rounding(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, result = record(function)

        def inexact() -> None:
            replay()
            rig.parts.adapter.gradients.mul_(1 + 1e-6)

        return inexact, result

    caplog.set_level(logging.INFO, "trainer.graphed_step")
    rig.training(gradient_step=graphed(rig, rounding, exact=exact)).train()
    assert (record.repetitions == 1) == exact
    assert ("not those of the eager step, by 1e-06 of them" in caplog.text) == exact


def test_recording_that_goes_on_with_its_first_batch_is_not_trusted(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A graph reads addresses: what is not copied into its buffers it never sees."""

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        gradients = rig.parts.adapter.gradients
        before = gradients.clone()
        result = function()
        recorded = gradients - before

        def replay() -> None:
            gradients.add_(recorded)

        return replay, result

    caplog.set_level(logging.WARNING, "trainer.graphed_step")
    rig = Rig(tiny_base)
    rig.training(gradient_step=graphed(rig, record)).train()
    assert_same_training(rig, trained(tiny_base))
    assert ["not those of the eager step" in line for line in caplog.messages] == [True]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("operation not permitted when stream is capturing\nmore"), torch.OutOfMemoryError("full")],
)
def test_failed_recording_leaves_the_training_as_it_was(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    """Neither a failure nor a full memory of the graph is one of the training."""

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        function()  # which adds to the gradients
        raise error

    caplog.set_level(logging.WARNING, "trainer.graphed_step")
    rig = trained(tiny_base, record, num_epochs=3)
    assert_same_training(rig, trained(tiny_base, num_epochs=3))
    assert not rig.parts.unet.is_gradient_checkpointing
    reason = str(error).partition("\n")[0]
    assert caplog.messages == [
        f"No CUDA graph is used, which costs speed only ({type(error).__name__}: {reason})."
    ]


def test_comparison_waits_for_a_scale_that_does_not_overflow(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The scaler's first factors overflow: infinite gradients say nothing about the recording."""
    caplog.set_level(logging.INFO)
    rig, record = Rig(tiny_base, torch.float16, num_epochs=2), CpuRecorder()
    rig.parts.optimizer._scaler._scale.fill_(2.0**40)  # type: ignore[union-attr]
    rig.parts.optimizer._scaler._backoff_factor = 2.0**-12
    rig.training(gradient_step=graphed(rig, record)).train()
    assert rig.epochs[-1].skipped_steps > 1
    assert caplog.messages == [ON]


def test_memory_that_is_full_later_ends_the_recording(tiny_base: Path) -> None:
    """Its pool is what the smaller steps need."""
    rig, record = Rig(tiny_base, num_epochs=3), CpuRecorder()
    step, calls = graphed(rig, record), 0

    def full_once(batch: MicroBatch, divisor: int) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == IMAGES:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(batch, divisor)

    rig.training(gradient_step=full_once).train()
    assert rig.parts.unet.is_gradient_checkpointing
    assert calls == IMAGES


class CrowdedMemory:
    """An eager step that a recording, once made, leaves too little memory for one of its calls.

    As on a GPU, what frees that memory is the end of the last reference to the recording.
    """

    def __init__(self, rig: Rig, full_at: int) -> None:
        self._eager = rig.parts.eager_step()
        self._full_at = full_at
        self._pool: weakref.ref[Callable[[], None]] | None = None
        self._calls_beside = 0
        self._recording_now = False

    def __call__(self, batch: MicroBatch, divisor: int) -> Tensor:
        loss = self._eager(batch, divisor)
        if not self._recording_now and self._pool and self._pool():
            self._calls_beside += 1
            if self._calls_beside >= self._full_at:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    def record(self, function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = function()

        def replay() -> None:
            self._recording_now = True
            result.copy_(function())
            self._recording_now = False

        self._pool = weakref.ref(replay)
        return replay, result


def test_comparison_needs_no_room_beside_the_recording(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its pool holds a step's activations: a 6 GB card has not the room for two."""
    caplog.set_level(logging.INFO, "trainer.graphed_step")
    rig = Rig(tiny_base, num_epochs=3)
    memory = CrowdedMemory(rig, full_at=1)
    rig.training(
        gradient_step=GraphedStep(memory, rig.parts.adapter.gradients, memory.record, exact=True)
    ).train()
    assert caplog.messages == [ON]


@pytest.mark.parametrize("full_at", [1, 2])
def test_memory_that_a_recording_takes_from_the_eager_step_costs_the_recording(
    tiny_base: Path, caplog: pytest.LogCaptureFixture, full_at: int
) -> None:
    """Beside it there may be no room for a batch of another size. Without it there is, so nothing is made
    smaller for that."""
    caplog.set_level(logging.WARNING, "trainer.graphed_step")
    rig = Rig(tiny_base, num_epochs=5, batch_size=3)
    memory = CrowdedMemory(rig, full_at)
    step = GraphedStep(memory, rig.parts.adapter.gradients, memory.record, exact=True)
    logging.getLogger("trainer.graphed_step").addFilter(_without_traceback)
    try:
        rig.training(gradient_step=step).train()
    finally:
        logging.getLogger("trainer.graphed_step").removeFilter(_without_traceback)
    assert caplog.messages == [
        "No CUDA graph is used, which costs speed only (the eager step needs the memory that it holds)."
    ]
    assert not rig.parts.unet.is_gradient_checkpointing
    assert_same_training(rig, trained(tiny_base, num_epochs=5, batch_size=3))


def _without_traceback(record: logging.LogRecord) -> bool:
    """Let caplog, which keeps its records, keep no frames."""
    record.exc_info = None
    return True


def test_recording_is_gone_when_the_training_is_over(tiny_base: Path) -> None:
    """The samples and their VAE come next, and need what its pool holds."""
    rig, record = Rig(tiny_base, num_epochs=2), CpuRecorder()
    step = graphed(rig, record)
    training, alive = rig.training(gradient_step=step), weakref.ref(step)
    del step
    training.train()
    assert record.repetitions
    assert alive() is None


def test_signal_while_a_step_is_recorded_waits_for_the_recordings_end(
    workshop: Workshop, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture that is left open makes the copies of the checkpoint fail."""
    ended = []

    def record(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        os.kill(os.getpid(), signal.SIGTERM)
        recorded = CpuRecorder()(function)
        ended.append(True)
        return recorded

    monkeypatch.setattr("trainer.run.graph_pays", lambda *_, **__: True)
    monkeypatch.setattr("trainer.run.record_cuda_graph", record)
    outcome = train(workshop.request())
    assert outcome.code == 75, outcome.log
    assert ended == [True]
    assert (workshop.folder().checkpoints / "epoch-0000-step-000001").exists()


def test_gradients_are_compared_as_a_whole() -> None:
    expected = torch.tensor([3.0, 0.0, -4.0])
    assert relative_difference(expected, expected) == relative_difference(0 * expected, 0 * expected) == 0
    assert relative_difference(expected, expected + torch.tensor([0.0, 0.5, 0.0])) == pytest.approx(0.1)
    assert relative_difference(0 * expected, expected) > 1
    assert not relative_difference(expected, expected * float("nan")) <= 1


class FakeCuda:
    """CUDA's pools and its queue, as far as a capture and repetitions go.

    Where a capture fails in between, torch 2.13 ends its allocations before it raises, and leaves its pool.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.underway: set[tuple[int, int]] = set()
        self.held: set[tuple[int, int]] = set()
        self.whole: set[tuple[int, int]] = set()
        self.caller = FakeStream()
        self.launched = self.over = self.most_queued = 0
        """Repetitions."""
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: FakeGraph(self))
        monkeypatch.setattr(torch.cuda, "Event", lambda *, blocking: FakeEvent(self))
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.caller)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph", self._capture)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", self._end)
        monkeypatch.setattr(torch._C, "_cuda_releasePool", self._release)

    @contextmanager
    def _capture(self, graph: "FakeGraph", *, pool: tuple[int, int], stream: "FakeStream") -> Iterator[None]:
        self.underway.add(pool)
        self.held.add(pool)
        try:
            yield
            graph.ended = True
        except torch.OutOfMemoryError:  # which the device does not see
            graph.ended = True
            raise
        except RuntimeError as error:
            raise RuntimeError("operation failed due to a previous error during capture") from error
        finally:
            self.underway.remove(pool)

    def _end(self, _device: int, pool: tuple[int, int]) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def _release(self, _device: int, pool: tuple[int, int]) -> None:
        if pool not in self.held:
            raise RuntimeError("INTERNAL ASSERT FAILED")
        self.held.remove(pool)


class FakeGraph:
    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.ended = False

    def pool(self) -> tuple[int, int]:
        if not self.ended:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return (0, 7)

    def replay(self) -> None:
        self._cuda.launched += 1
        self._cuda.most_queued = max(self._cuda.most_queued, self._cuda.launched - self._cuda.over)

    def __del__(self) -> None:
        """Release the pool, as the real one does when its capture came to its end."""
        if self.ended:
            self._cuda.held.remove((0, 7))


class FakeEvent:
    """Comes when all is over that was queued before it was recorded."""

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self._after = 0

    def record(self) -> None:
        self._after = self._cuda.launched

    def synchronize(self) -> None:
        self._cuda.over = max(self._cuda.over, self._after)


class FakeStream:
    def __init__(self) -> None:
        self.awaited: list[FakeStream] = []

    def wait_stream(self, other: "FakeStream") -> None:
        self.awaited.append(other)


@pytest.mark.parametrize("fails_at", [1, 4])
@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_failed_capture_leaves_nothing_begun_and_no_memory_held(
    monkeypatch: pytest.MonkeyPatch, fails_at: int, error: type[RuntimeError]
) -> None:
    """Calls one to three warm up, the fourth is captured. The allocator would take itself for capturing for
    the rest of the process; and what the stream still does writes into the gradients that are restored."""
    cuda, calls = FakeCuda(monkeypatch), 0

    def function() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise error("not permitted")
        return torch.zeros(())

    with suppress(RuntimeError):  # pytest.raises would keep the error, and with it the graph
        record_cuda_graph(function)
        pytest.fail("nothing was raised")
    assert not cuda.underway
    assert not cuda.held
    assert len(cuda.caller.awaited) == 1


def test_a_signal_waits_for_two_repetitions_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an epoch of a hundred pictures in the queue, its checkpoint came after SIGTERM's grace period."""
    cuda = FakeCuda(monkeypatch)
    repeat, _ = record_cuda_graph(lambda: torch.zeros(()))
    for _ in range(100):
        repeat()
    assert cuda.launched == 100
    assert cuda.most_queued == 2
