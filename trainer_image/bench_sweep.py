"""The benchmark's points: each batch size on both sides, in turns, until a side's memory is full."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from bench_plan import BenchPlan
from job_contract.request import MAX_EPOCHS, MAX_IMAGES

SIDES: Final = ("trainer", "reference")
FULL: Final = "out_of_memory"
"""The only key of a point's side that did not fit."""
_BATCHES_AN_EPOCH: Final = 10
_LARGER_IS_BETTER: Final = ("images_per_second", "steady_images_per_second")

Figures = dict[str, Any]


def pictures_and_epochs(batch_size: int, steps: int) -> tuple[int, int]:
    """Return how many pictures and epochs make steps of whole batches, within what a request may ask for.

    An epoch has up to ten steps; the last one may go beyond steps, and 500 epochs may fall short of them.
    """
    batches = max(1, min(_BATCHES_AN_EPOCH, steps, MAX_IMAGES // batch_size))
    return batches * batch_size, min(MAX_EPOCHS, -(-steps // batches))


def sweep(
    plans: Iterable[BenchPlan], rounds: int, measure: Callable[[str, BenchPlan], Figures]
) -> list[Figures]:
    """Measure each plan's sides and return one entry a plan.

    A side that is out of memory says so in its entry, and is not asked about the plans after that.
    """
    points: list[Figures] = []
    going = list(SIDES)
    for plan in plans:
        found: dict[str, list[Figures]] = {side: [] for side in going}
        for _ in range(rounds):
            for side in list(going):
                found[side].append(measure(side, plan))
                if FULL in found[side][-1]:
                    going.remove(side)
        if found:
            sides = {side: _best_of_each(ones) for side, ones in found.items()}
            points.append(
                {
                    "batch_size": plan.batch_size,
                    "pictures": plan.picture_count,
                    "epochs": plan.epochs,
                    "steps": plan.steps,
                    **sides,
                }
            )
    return points


def best_point(points: Sequence[Figures], side: str) -> Figures | None:
    """Return the point at which side was quickest once it was warm; None where none fitted."""
    fitting = [point for point in points if FULL not in point.get(side, {FULL: True})]
    return max(fitting, key=lambda point: float(point[side]["steady_images_per_second"]), default=None)


def _best_of_each(rounds: list[Figures]) -> Figures:
    """Return the best figure of each kind, and the start of the round with the quickest one."""
    if any(FULL in one for one in rounds):
        return {FULL: True}
    quickest = min(rounds, key=lambda one: float(one["first_step_seconds"]))
    return {
        name: value
        if isinstance(value, dict)
        else (max if name in _LARGER_IS_BETTER else min)(one[name] for one in rounds)
        for name, value in quickest.items()
    }
