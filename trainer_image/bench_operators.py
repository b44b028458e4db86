"""How many kernels a step asks for: operators that compute or copy, without views and composites.

On a GPU a LoRA step at batch 1 is bound by their launches, and this count needs no GPU.
"""

from typing import Any, Final

from torch.profiler import ProfilerActivity, profile

_NO_KERNEL_NAMES: Final = """
    alias as_strided chunk contiguous detach detach_ empty empty_like empty_strided expand expand_as flatten
    is_nonzero item lift_fresh narrow permute resize_ reshape _reshape_alias resolve_conj resolve_neg
    result_type select set_ slice split squeeze t to transpose unbind unflatten unsqueeze _unsafe_view view
    view_as _local_scalar_dense
"""
_NO_KERNEL: Final = frozenset(_NO_KERNEL_NAMES.split())


class OperatorCount:
    """Counts from start to stop."""

    def start(self) -> None:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.start()

    def stop(self) -> int:
        """Return the number of operators since start that no smaller operator does the work for."""
        self._profile.stop()
        return sum(
            _computes(event) and not any(_computes(child) for child in event.cpu_children)
            for event in self._profile.events() or ()  # type: ignore[no-untyped-call]  # torch's
        )


def _computes(event: Any) -> bool:
    space, _, name = event.name.partition("::")
    return space == "aten" and name not in _NO_KERNEL
