"""The processes that share a training, one a device. One process is a group of one."""

from torch import Tensor, distributed


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
