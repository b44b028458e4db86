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
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from trainer.base_model import load_unet
from trainer.checkpoint import Checkpoint
from trainer.device import find_device
from trainer.examples import Examples, Latents
from trainer.interrupt import Interrupt
from trainer.parts import put_together
from trainer.plan import TrainingPlan
from trainer.processes import ProcessGroup, join_group
from trainer.settings import MixedPrecision
from trainer.training import Training

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
        mixed_precision: as in the settings.
        cuda: each process has the GPU of its number; else all share the CPU.
    """

    def __init__(self, count: int, mixed_precision: MixedPrecision, *, cuda: bool) -> None:
        self.count = count
        self._mixed_precision = mixed_precision
        self._cuda = cuda
        self._port = _free_port()
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        self._done = threading.Event()

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")
        for rank in range(1, self.count):
            ours, theirs = context.Pipe()
            arguments = (theirs, rank, self.count, self._port, self._mixed_precision, self._cuda)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for process in self._processes:
            process.kill()  # they hold nothing that is not the first process's too
            process.join()

    def join(
        self, plan: TrainingPlan, base: Path, examples: Examples, checkpoint: Checkpoint | None
    ) -> ProcessGroup:
        """Send the workers what they train, and return the group when all have met."""
        if self.count == 1:
            return ProcessGroup()
        work = pickle.dumps(_Work(plan, base, _to(examples, torch.device("cpu")), checkpoint))
        for pipe in self._pipes:
            pipe.send_bytes(work)
        threading.Thread(target=self._watch, daemon=True).start()
        return join_group(0, self.count, self._port, cuda=self._cuda)

    def _watch(self) -> None:
        """When a worker dies, end this process as an interruption does: its next start goes on."""
        wait([process.sentinel for process in self._processes])
        if not self._done.is_set():
            logger.error("A process of another device has died; see its lines above.")
            os.kill(os.getpid(), signal.SIGTERM)


def _serve(
    pipe: Connection, rank: int, count: int, port: int, mixed_precision: MixedPrecision, cuda: bool
) -> None:
    """Train along: the whole life of a worker."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the first process ends this one
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    work: _Work = pickle.loads(pipe.recv_bytes())  # noqa: S301 (from the process that started this one)
    device = find_device(mixed_precision, require_cuda=cuda, index=rank)
    unet: Any = load_unet(work.base, device.dtype, device.torch_device)
    examples = _to(work.examples, device.torch_device)
    training = Training(
        put_together(work.plan, unet, examples, work.base, device),
        work.plan,
        fingerprint="",
        group=join_group(rank, count, port, cuda=cuda),
        interrupt=Interrupt(),
        checkpoint_every=work.plan.epochs,
        save=lambda _checkpoint: None,
        on_epoch=lambda _metrics: None,
        between_epochs=lambda _epoch: None,
        peak_memory_mib=lambda: 0,
    )
    if work.checkpoint:
        training.restore(work.checkpoint)
    training.train()


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
