"""The other processes of a training on several devices; the first one starts them and feeds them.

They only train. Pictures, checkpoints, files and reports are the first process's.
"""

import logging
import multiprocessing
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import torch
from torch import Tensor

from trainer.base_model import load_unet
from trainer.checkpoint import Checkpoint
from trainer.device import Device
from trainer.errors import InterruptedTrainingError
from trainer.examples import Examples, Latents
from trainer.interrupt import Interrupt, StopRequested
from trainer.parts import put_together
from trainer.plan import TrainingPlan
from trainer.processes import ProcessGroup, join_group
from trainer.termination import report
from trainer.training import Training

_GOES_ON: Final = "started again, the training goes on from its last checkpoint."
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Work:
    """What the first process sends to each of the others."""

    plan: TrainingPlan
    base: Path
    examples: Examples
    checkpoint: Checkpoint | None


class Workers:
    """Processes 1 to count - 1 of a group of count; a context manager, after which they are gone.

    They are started before the pictures are fetched, so that their imports take no time of their own.

    Args:
        count: processes with the first one; 1 starts none.
        find: returns the device for require_cuda and index.
        interrupt: of the first process.
        cuda: each process has the GPU of its number; else all share the CPU.
        patience_seconds: for the first process to end by itself after a signal; Kubernetes grants 30.
    """

    def __init__(
        self,
        count: int,
        find: Callable[..., Device],
        interrupt: Interrupt,
        *,
        cuda: bool,
        patience_seconds: float = 15.0,
    ) -> None:
        self.count = count
        self._find = find
        self._interrupt = interrupt
        self._cuda = cuda
        self._patience_seconds = patience_seconds
        self._port = _free_port()
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._done = threading.Event()
        self._death: str | None = None
        """A sentence about the worker that died before its time."""

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.count):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.count, self._port, self._find, self._cuda)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            with _signals_held_back():
                process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        if self._processes:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers.

        Raises:
            InterruptedTrainingError: instead of the interruption by a worker's death; it names the worker.
        """
        self._done.set()
        self._kill()
        for process in self._processes:
            process.join()
        if self._death and isinstance(error, StopRequested | InterruptedTrainingError):
            raise InterruptedTrainingError(self._death) from error

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()  # they hold nothing that is not the first process's too

    def join(
        self, plan: TrainingPlan, base: Path, examples: Examples, checkpoint: Checkpoint | None
    ) -> ProcessGroup:
        """Send the workers what they train, and return the group when all have met.

        Raises:
            InterruptedTrainingError: a worker is gone.
        """
        if self.count == 1:
            return ProcessGroup()
        work = pickle.dumps(_Work(plan, base, _to(examples, torch.device("cpu")), checkpoint))
        try:
            for pipe in self._pipes:
                pipe.send_bytes(work)
        except OSError as error:
            raise InterruptedTrainingError(f"A process of another device is gone; {_GOES_ON}") from error
        return join_group(0, self.count, self._port, cuda=self._cuda)

    def _watch(self) -> None:
        """End the first process when a worker dies or a signal comes, whatever it waits for just then.

        Usually it ends itself by the signal, with a checkpoint. But while it waits for the others in a
        library's C code, Python's handler cannot run, and NCCL waits for a dead worker for ever.
        """
        arrived = wait([*(process.sentinel for process in self._processes), self._interrupt.arrivals])
        if self._done.is_set():
            return
        for rank, process in enumerate(self._processes, 1):
            if process.sentinel in arrived:
                process.join()
                self._death = (
                    f"The training's process on device {rank} has died (exit code {process.exitcode}; its "
                    f"lines in the log say why); {_GOES_ON}"
                )
                logger.error("The process on device %d has died; see its lines above.", rank)
                os.kill(os.getpid(), signal.SIGTERM)
        if not self._done.wait(self._patience_seconds):
            stuck = f"A signal interrupted the training while it waited for another device; {_GOES_ON}"
            code = report(InterruptedTrainingError(self._death or stuck))
            self._kill()
            os._exit(code)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Let a process that is started inside inherit a mask: while it imports it cannot ignore signals yet."""
    resource_tracker.ensure_running()  # started with the process, it would undo the mask
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _serve(
    pipe: Connection, rank: int, count: int, port: int, find: Callable[..., Device], cuda: bool
) -> None:
    """Train along: the whole life of a worker."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the first process ends this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    work: _Work = pickle.loads(pipe.recv_bytes())  # noqa: S301 (from the process that started this one)
    device = find(require_cuda=cuda, index=rank)
    unet: Any = load_unet(work.base, device.dtype, device.torch_device)
    examples = _to(work.examples, device.torch_device)
    training = Training(
        put_together(work.plan, unet, examples, work.base, device),
        work.plan,
        group=join_group(rank, count, port, cuda=cuda),
        interrupt=Interrupt(),
    )
    if work.checkpoint:
        training.restore(work.checkpoint)
    training.train()
    threading.Event().wait()  # an end would look like a death; the first process ends this one


def _end_with_the_first() -> None:
    """Leave no process behind when the first one is killed."""
    first = multiprocessing.parent_process()
    if first:
        first.join()
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _to(examples: Examples, device: torch.device) -> Examples:
    def move(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return pair[0].to(device), pair[1].to(device)

    latents = [Latents(move(one.mean), move(one.deviation)) for one in examples.latents]
    return replace(examples, latents=latents, texts=examples.texts.to(device))
