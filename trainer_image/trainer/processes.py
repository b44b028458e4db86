"""The processes that share a training, one a device. One process is a group of one."""

import os
from datetime import timedelta
from typing import Final

from torch import Tensor, distributed

_PATIENCE: Final = timedelta(minutes=5)
"""How long a process waits for the others, whose first step may take a while."""


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
        """Replace each tensor, in place, by its sum over all processes."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)


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
