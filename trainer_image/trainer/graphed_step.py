"""The gradient step as a CUDA graph: one launch instead of some thousand.

At batch 1 a fast GPU waits for the CPU's launches. A graph records them once and repeats them. It is built
after PyTorch's recipe (CUDA semantics, "Whole-network capture"): buffers that stay, a warm-up on a stream of
its own, gradients that are zeroed in place; weights and the scaler's factor change in place too, and nothing
is autocast. What it gains has not been measured on a GPU yet, so it is not trusted either: the gradients of
its first repetition are compared with those of the eager step, and whatever goes wrong, that one goes on.
"""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import torch
from torch import Size, Tensor

from trainer.device import first_line, is_out_of_memory
from trainer.gradient_step import GradientStep, MicroBatch
from trainer.settings import CudaGraphs

_Kind = tuple[Size, int]
"""What a recording is good for: the latents' shape, and the divisor."""
Recorder = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records a function of the device; returns what repeats it, and the result that every repetition fills."""

MIN_STEPS: Final = 100
"""Warm-up, recording and comparison are the work of some five steps. An estimate: not measured."""
_WARM_UPS: Final = 3
_TOLERANCE: Final = 1e-2
"""Of the gradients' norm. Half precision and the order of sums in backward differ by some thousandths."""

logger = logging.getLogger(__name__)


def graph_pays(setting: CudaGraphs, *, is_cuda: bool, processes: int, steps_left: int) -> bool:
    """Return whether to record the steps of a training that has steps_left to do.

    Several processes exchange gradients between their steps, which is not worth a recording's risks.
    """
    return setting == "auto" and is_cuda and processes == 1 and steps_left >= MIN_STEPS


class GraphedStep:
    """A gradient step for one shape of micro-batch; others are left to eager.

    That is the first shape that comes twice when none with more images has come: an epoch's last batch, which
    may be smaller, comes twice only after all the others. When it comes the second time, the eager step is
    taken; then the step is recorded with the first micro-batch and repeated with the second, and only if that
    adds up to the eager step's gradients it is repeated from then on.

    Args:
        eager: does the work, and is what is recorded.
        gradients: to which eager adds.
        record: record_cuda_graph.
        exact: a recording must give the very gradients of the eager step. A resumed training begins with
            eager steps where the uninterrupted one repeated its recording.
    """

    def __init__(self, eager: GradientStep, gradients: Tensor, record: Recorder, *, exact: bool) -> None:
        self._eager = eager
        self._gradients = gradients
        self._record = record
        self._tolerance = 0.0 if exact else _TOLERANCE
        self._waiting: dict[_Kind, MicroBatch] = {}
        self._recording: _Recording | None = None
        self._refused = False

    def __call__(self, batch: MicroBatch, divisor: int) -> Tensor:
        """Take the step; the result that is returned holds until the next call."""
        kind = (batch.latents.shape, divisor)
        if self._recording:
            same = self._recording.kind == kind
            return self._recording.repeat(batch) if same else self._beside_recording(batch, divisor)
        if self._refused or not self._comes_again(kind, batch):
            return self._eager(batch, divisor)
        held = self._gradients.clone()
        self._gradients.zero_()
        loss = self._eager(batch, divisor)
        expected = self._gradients.clone()
        # Where the scaler's factor was too large there is nothing to compare: the next step will show.
        if bool(torch.isfinite(expected).all()):
            try:
                self._try_recording(kind, batch, expected)
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                self._refuse(f"{type(error).__name__}: {first_line(error)}", error)
        torch.add(held, expected, out=self._gradients)
        return loss

    def _comes_again(self, kind: _Kind, batch: MicroBatch) -> bool:
        if kind not in self._waiting:
            self._waiting[kind] = batch
            return False
        return all(kind[0][0] >= shape[0] for shape, _ in self._waiting)

    def _try_recording(self, kind: _Kind, batch: MicroBatch, expected: Tensor) -> None:
        # With the first micro-batch, so that a recording that never reads its buffers gives itself away.
        buffers, eager = self._waiting[kind].clone(), self._eager
        self._waiting.clear()
        replay, loss = self._record(lambda: eager(buffers, kind[1]))  # without self: that'd be a cycle
        recording = _Recording(kind, buffers, replay, loss)
        self._gradients.zero_()
        recording.repeat(batch)
        difference = relative_difference(expected, self._gradients)
        if difference <= self._tolerance:
            self._recording = recording
            logger.info(
                "The steps run as a CUDA graph from now on (its gradients are %s the eager step's).",
                f"within {difference:.0e} of" if difference else "exactly",
            )
        else:
            self._refuse(f"its gradients are not those of the eager step, by {difference:.0e} of them")

    def _beside_recording(self, batch: MicroBatch, divisor: int) -> Tensor:
        held = self._gradients.clone()
        try:
            return self._eager(batch, divisor)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._refuse("the eager step needs the memory that it holds", error)
        # Not in the handler: until that ends, its error holds the recording and half of the failed step.
        self._gradients.copy_(held)
        torch.cuda.empty_cache()
        return self._eager(batch, divisor)

    def _refuse(self, reason: str, error: Exception | None = None) -> None:
        logger.warning("No CUDA graph is used, which costs speed only (%s).", reason, exc_info=error)
        self._refused = True
        self._recording = None


@dataclass
class _Recording:
    kind: _Kind
    buffers: MicroBatch
    """Where a repetition reads its micro-batch."""
    replay: Callable[[], None]
    loss: Tensor
    """Where a repetition leaves its result."""

    def repeat(self, batch: MicroBatch) -> Tensor:
        for buffer, tensor in zip(self.buffers.tensors(), batch.tensors(), strict=True):
            buffer.copy_(tensor)
        self.replay()
        return self.loss


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Return the norm of found - expected over that of expected, both [P]."""
    difference, norm = (found.float() - expected.float()).norm(), expected.float().norm()
    return float(difference / norm.clamp(min=torch.finfo(torch.float32).tiny))


def record_cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record function on the current device; its memory is a pool of its own.

    Raises:
        RuntimeError: it does something that cannot be recorded, or the memory does not hold it.
    """
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]  # torch's
    pool, caller = torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
    stream.wait_stream(caller)
    try:
        # This block also ends the use of the stream when recording fails; torch.cuda.graph itself does not.
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                function()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                result = function()
    except RuntimeError:
        _give_back(graph, pool)
        raise
    finally:
        caller.wait_stream(stream)
    return _within_two(graph), result


def _within_two(graph: torch.cuda.CUDAGraph) -> Callable[[], None]:
    """Return what repeats graph when the last but one repetition is over.

    A repetition is one launch, so the CPU could queue a whole epoch, which SIGTERM's checkpoint would have to
    wait for. One repetition runs and one is queued: the device never waits.
    """
    done = [torch.cuda.Event(blocking=True) for _ in range(2)]  # type: ignore[no-untyped-call]  # torch's

    def repeat() -> None:
        done.reverse()
        done[0].synchronize()
        graph.replay()
        done[0].record()

    return repeat


def _give_back(graph: torch.cuda.CUDAGraph, pool: "torch.cuda._POOL_HANDLE") -> None:
    """Give back what a failed capture holds: torch 2.13's graph does so only after one that came to its end.

    The allocator could also take every later allocation for one within a capture, in which it neither frees
    cached memory nor tries again (pytorch #190348).
    """
    with suppress(RuntimeError):
        graph.pool()  # it has one only when its capture came to its end
        return
    device = torch.cuda.current_device()
    for end in (torch._C._cuda_endAllocateToPool, torch._C._cuda_releasePool):
        with suppress(RuntimeError):  # nothing was begun, or it is ended already
            end(device, pool)
