"""What a device is asked for, operator by operator, and the memory that its tensors take."""

import weakref
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NO_KERNEL: Final = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view"}
_BLOCK: Final = 512
"""Bytes to which CUDA's allocator rounds every tensor up."""


class Operand(NamedTuple):
    """A tensor, without its values."""

    device: str
    dtype: torch.dtype
    shape: torch.Size

    def __str__(self) -> str:
        return f"{self.device} {str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Operator:
    """One call."""

    name: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    is_kernel: bool
    """Whether it computes or copies; views and allocations do not."""

    @property
    def devices_in(self) -> set[str]:
        return {operand.device for operand in self.inputs}

    @property
    def devices_out(self) -> set[str]:
        return {operand.device for operand in self.outputs}

    def __str__(self) -> str:
        inputs, outputs = (", ".join(map(str, operands)) for operands in (self.inputs, self.outputs))
        return f"{self.name}({inputs}) -> {outputs}"


def is_kernel(function: Any) -> bool:
    """Return whether an operator computes or copies; views and allocations do not."""
    name = function._schema.name.removeprefix("aten::")
    return not function.is_view and name not in _NO_KERNEL and function is not torch.ops.prim.device.default


class OperatorLog(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Notes every operator, and how many bytes of the device's memory its tensors hold.

    A read of a fake tensor's value is noted as well, and answered with 1.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.operators: list[Operator] = []
        self.bytes = 0
        """That tensors hold now."""
        self.peak_bytes = 0
        """The most that they held since begin()."""
        self._held: dict[int, int] = {}

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]  # torch's
        return self

    def begin(self) -> None:
        """Forget all operators and the peak so far."""
        self.operators = []
        self.peak_bytes = self.bytes

    def __torch_dispatch__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function is torch.ops.prim.device.default:
            return function(*arguments, **options)
        inputs = _tensors((arguments, options))
        if function is torch.ops.aten._local_scalar_dense.default:
            result: Any = 1.0 if inputs[0].dtype.is_floating_point else 1
        else:
            result = function(*arguments, **options)
        outputs = _tensors(result)
        name = function._schema.name.removeprefix("aten::")
        self.operators.append(Operator(name, _operands(inputs), _operands(outputs), is_kernel(function)))
        for tensor in outputs:
            if tensor.device.type != "cpu":
                self._hold(tensor.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._held:
            return
        self._held[storage._cdata] = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self.bytes += self._held[storage._cdata]
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        weakref.finalize(storage, self._release, storage._cdata)

    def _release(self, address: int) -> None:
        self.bytes -= self._held.pop(address)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _operands(tensors: list[Tensor]) -> tuple[Operand, ...]:
    return tuple(Operand(tensor.device.type, tensor.dtype, tensor.shape) for tensor in tensors)
