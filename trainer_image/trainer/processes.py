"""The processes that share a training, one a device. One process is a group of one."""

import os
from datetime import timedelta
from typing import Final

from torch import Tensor, distributed

from trainer.errors import InterruptedTrainingError

_PATIENCE: Final = timedelta(hours=1)
"""How long a process waits for the others: the first one may draw samples between two epochs. That one has
died is noticed without it (see Workers)."""


class ProcessGroup:
    """Divides every batch among its processes and adds their gradients up.

    What an image sees does not depend on the process that it falls to, so the sum is that of one process
    with the whole batch.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    def share(self, batch: list[int]) -> list[int]:
        """Return this process's images of batch; perhaps none."""
        return batch[self.rank :: self.size]

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor, in place, by its sum over all processes.

        Raises:
            InterruptedTrainingError: another process is gone.
        """
        if self.size == 1:
            return
        try:
            for tensor in tensors:
                distributed.all_reduce(tensor)
        except RuntimeError as error:
            raise InterruptedTrainingError(
                "The training's process on another device has died (see the log); started again, it goes on "
                "from its last checkpoint."
            ) from error


def join_group(rank: int, size: int, port: int, *, cuda: bool) -> ProcessGroup:
    """Wait until size processes of this machine have met at port; accelerate chooses how they talk."""
    from accelerate import PartialState

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    PartialState(cpu=not cuda, timeout=_PATIENCE)
    return ProcessGroup(rank, size)
