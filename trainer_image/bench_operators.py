"""Which operators a step asks for: those that compute or copy, and those that make the CPU wait.

On a GPU a LoRA step at batch 1 is bound by the launches of its kernels, and this count needs no GPU.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from torch.profiler import ProfilerActivity, profile

_NO_KERNEL_NAMES: Final = """
    alias as_strided as_strided_ chunk contiguous detach detach_ dropout empty empty_like empty_strided
    expand expand_as flatten is_nonzero item lift_fresh _local_scalar_dense narrow new_empty _nnpack_available
    permute reshape _reshape_alias resize_ resolve_conj resolve_neg result_type select set_ slice split
    split_with_sizes squeeze t to transpose unbind unflatten _unsafe_view unsqueeze view view_as
"""
_NO_KERNEL: Final = frozenset(_NO_KERNEL_NAMES.split())
_WAIT: Final = "aten::_local_scalar_dense"
"""What item(), bool(tensor) and float(tensor) end in: the CPU waits for all that a GPU has queued."""
_OPTIMIZER: Final = "Optimizer.step#"
"""AdamW reads its step and rate so where they are a CPU's; on CUDA they are on the device, or stay here."""
_FOREACH: Final = "aten::_foreach"
"""One kernel or a few for hundreds of tensors on CUDA; on a CPU as many small ones, which are not counted."""
_SHOWN: Final = 12


@dataclass(frozen=True)
class Operators:
    """What ran between start and stop."""

    kernels: Counter[str]
    """By name: operators that no smaller operator does the work for."""
    waits: int
    """How often the CPU would have waited for the device."""

    def figures(self) -> dict[str, Any]:
        return {
            "kernels_per_step": self.kernels.total(),
            "host_syncs_per_step": self.waits,
            "operators": dict(self.kernels.most_common(_SHOWN)),
        }


class OperatorCount:
    """Counts from start to stop."""

    def start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.start()

    def stop(self) -> Operators:
        self._profile.stop()
        events = self._profile.events() or ()  # type: ignore[no-untyped-call]  # torch's
        kernels = Counter(
            event.name.removeprefix("aten::") for event in events if _computes(event) and _is_smallest(event)
        )
        return Operators(
            kernels, sum(event.name == _WAIT and not _is_inside(event, _OPTIMIZER) for event in events)
        )


def _is_smallest(event: Any) -> bool:
    if _is_inside(event, _FOREACH):
        return False
    return event.name.startswith(_FOREACH) or not any(_computes(child) for child in event.cpu_children)


def _is_inside(event: Any, prefix: str) -> bool:
    while event := event.cpu_parent:
        if event.name.startswith(prefix):
            return True
    return False


def _computes(event: Any) -> bool:
    space, _, name = event.name.partition("::")
    return space == "aten" and name not in _NO_KERNEL
