"""What both sides of the benchmark train."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BenchPlan:
    """Goes to each side's process as JSON."""

    base: str
    """The folder of the base."""
    pictures: str
    """The folder of the pictures."""
    picture_count: int
    epochs: int
    batch_size: int
    resolution: int
    precision: str
    """no, fp16 or bf16."""

    @property
    def images(self) -> int:
        return self.picture_count * self.epochs

    @property
    def steps(self) -> int:
        return self.epochs * -(-self.picture_count // self.batch_size)
