"""CUDA without a GPU, by torch's FakeTensorMode: tensors have shapes, dtypes and a device, but no memory.

What fake tensors lack on a machine without a GPU is added here and taken away again: autograd asks C++ for
the device, GradScaler switches itself off, and attention takes the one kernel that no GPU would.
"""

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

CUDA: Final = torch.device("cuda:0")

_CUDA_TYPE: Final = 1  # c10::DeviceType::CUDA
_METHODS: Final = 128
"""More than any of the two C++ classes has."""
_YES: Final = 0x16301
"""True as a bool, 1 as a count, 90881 as cuDNN's version, so that convolutions keep channels_last."""
_aten: Final = torch.ops.aten
_torch_attention: Final = F.scaled_dot_product_attention


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within it tensors are fake, and CUDA is there to hold them.

    Everything runs on the calling thread, backward too, so that dispatch modes see all of it.
    """
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        if not torch.cuda.is_available():
            stack.enter_context(_device_for_autograd())
            patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)  # which is the CPU's, too
        stack.enter_context(_operators())
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        patch.setattr(F, "scaled_dot_product_attention", _fused_attention)
        mode = FakeTensorMode()
        # The memo's weak references keep Module.to() from exchanging a fake parameter; nothing here needs it.
        patch.setattr(mode.fake_tensor_converter, "set_tensor_memo", lambda _real, _fake: None)
        yield stack.enter_context(mode)


@contextmanager
def _device_for_autograd() -> Iterator[None]:
    """Let autograd's C++ find a CUDA device, of which it wants to know that it is there and its one stream.

    PyTorch has a no-op guard for such a device, but only its CUDA builds take it where they count no device;
    and its CUDA hooks say that there is none. So a guard that counts 0 is put where those builds have theirs,
    and every method of the hooks answers yes. Both are C++ objects: a pointer to a table of methods.
    """
    folder = Path(torch.__file__).parent / "lib"
    c10, cpu = (ctypes.CDLL(str(folder / name)) for name in ("libc10.so", "libtorch_cpu.so"))
    guards = (ctypes.c_void_p * (_CUDA_TYPE + 1)).in_dll(c10, "_ZN3c104impl26device_guard_impl_registryE")
    cpu._ZN2at6detail12getCUDAHooksEv.restype = ctypes.c_void_p
    hooks = ctypes.c_void_p.from_address(cpu._ZN2at6detail12getCUDAHooksEv())
    before = guards[_CUDA_TYPE], hooks.value

    method = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p)
    methods = [method(lambda _object, answer=answer: answer) for answer in (0, _YES)]
    tables = [
        (ctypes.c_void_p * _METHODS)(*[ctypes.cast(one, ctypes.c_void_p).value] * _METHODS) for one in methods
    ]
    guard = ctypes.c_void_p(ctypes.addressof(tables[0]))
    guards[_CUDA_TYPE] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()  # puts the no-op guard there
    hooks.value = ctypes.addressof(tables[1])
    try:
        yield
    finally:
        guards[_CUDA_TYPE], hooks.value = before


@contextmanager
def _operators() -> Iterator[None]:
    """Complete what torch knows of operators without running them."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        # Its results are its arguments, changed. Only for a rate that is a number torch has this itself.
        library.impl("_fused_adamw_.tensor_lr", lambda *_arguments, **_options: None, "Meta")
        if torch.version.cuda is None:
            # One kernel of CUDA's; where there is none, it is taken apart before a mode sees it.
            library.impl("silu_backward", _never, "CUDA")
        yield


def _never(*_arguments: Any) -> None:
    raise AssertionError("a fake tensor reached a kernel")


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """Return attention by a kernel that a GPU would choose: neither holds the [N, N] scores.

    Half precision takes flash attention. GPUs before Ampere have the efficient one instead, as float32 has
    everywhere; what both save for backward differs by kilobytes. Masked attention is the text encoder's only.
    """
    if query.device.type != "cuda" or attn_mask is not None or dropout_p or is_causal or options:
        return _torch_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    result: Tensor
    if query.dtype == torch.float32:
        saves = query.requires_grad
        result = _aten._scaled_dot_product_efficient_attention(query, key, value, None, saves)[0]
    else:
        result = _aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return result
