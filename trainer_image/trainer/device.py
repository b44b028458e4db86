"""The device of a training: found, named and proven by an operation before anything is loaded."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from trainer.errors import ConfigurationError, GpuFaultError, NoGpuError
from trainer.settings import MixedPrecision

_MIB: Final = 2**20
_FULL: Final = (
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",
)
"""How CUDA, cuBLAS and cuDNN put it when they are refused memory."""
_FAULTS: Final = ("CUDA error", "CUDA driver error", "cuDNN error")
_DEVICE_FILES: Final = Path("/dev")
_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Device:
    """Where the training runs, and the number format of the frozen base there."""

    torch_device: torch.device
    dtype: torch.dtype
    name: str
    memory_mib: int | None
    """Memory of the GPU; None on a CPU."""

    @property
    def is_cuda(self) -> bool:
        return self.torch_device.type == "cuda"

    @property
    def precision(self) -> str:
        """The dtype as accelerate and sd-scripts name it: fp16, bf16 or no."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.dtype, "no")

    def describe(self) -> str:
        memory = f", {self.memory_mib} MiB" if self.memory_mib else ""
        return f"{self.name}{memory}, base in {str(self.dtype).removeprefix('torch.')}"

    def peak_memory_mib(self) -> int:
        """Return the most memory held so far: of the GPU by the allocator, or by the process on a CPU.

        What is held is what a GPU has to have; a CUDA graph's pool counts as allocated only while it records.
        """
        if self.is_cuda:
            return torch.cuda.max_memory_reserved(self.torch_device) // _MIB
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def find_device(
    mixed_precision: MixedPrecision, *, require_cuda: bool, deterministic: bool, index: int = 0
) -> Device:
    """Return the GPU number index where there is one, else the CPU, which is deterministic anyway.

    Raises:
        NoGpuError: require_cuda is set and the machine has no GPU.
        GpuFaultError: a GPU is there and does not work; another node may do.
        ConfigurationError: mixed_precision cannot be had on this device.
    """
    keep_to_cpu_limit(_CPU_LIMIT)
    if torch.cuda.is_available():
        return _cuda_device(mixed_precision, index, deterministic=deterministic)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip() in ("", "-1")
    if not hidden and any(_DEVICE_FILES.glob("nvidia[0-9]*")):
        raise GpuFaultError(
            "A GPU is attached but CUDA cannot use it; check the node's driver against CUDA "
            f"{torch.version.cuda or '(this PyTorch is built without CUDA)'}."
        )
    if require_cuda:
        raise NoGpuError(
            "REQUIRE_CUDA is set and no GPU is there; give the container a GPU (nvidia.com/gpu) and the "
            "NVIDIA runtime, or unset REQUIRE_CUDA to train on the CPU."
        )
    if mixed_precision == "fp16":
        raise ConfigurationError("MIXED_PRECISION=fp16 needs a GPU; use auto, no or bf16 on a CPU.")
    dtype = torch.bfloat16 if mixed_precision == "bf16" else torch.float32
    return Device(torch.device("cpu"), dtype, f"CPU ({torch.get_num_threads()} threads)", None)


def keep_to_cpu_limit(limit: Path) -> None:
    """Take no more threads than a container may use CPUs, by its control group's file cpu.max.

    torch counts the node's, and threads beyond the limit use up its time early, so that all have to wait.
    """
    try:
        quota, period = limit.read_text().split()
    except (OSError, ValueError):
        return  # no control group of its own, or one of version 1
    if quota != "max":
        cpus = math.ceil(int(quota) / int(period))
        torch.set_num_threads(min(torch.get_num_threads(), cpus))


def _cuda_device(mixed_precision: MixedPrecision, index: int, *, deterministic: bool) -> Device:
    device = torch.device("cuda", index)
    # cuDNN builds a plan for every shape of attention, half a second each; the others' kernels are there.
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)
    if deterministic:
        compute_deterministically()
    try:
        torch.cuda.set_device(device)
        properties = torch.cuda.get_device_properties(device)
        ones = torch.ones(64, 64, device=device)
        total = (ones @ ones).sum().item()
    except (RuntimeError, AssertionError) as error:
        raise GpuFaultError(f"The GPU does not work: {first_line(error)}. Another node may do.") from error
    if total != 64**3:
        raise GpuFaultError(
            f"The GPU computes wrongly: 64^3 came out as {total}. Take the node out of service."
        )
    if mixed_precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigurationError(f"{properties.name} has no bf16; set MIXED_PRECISION to fp16 or auto.")
    dtypes = {"auto": torch.float16, "fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}
    return Device(device, dtypes[mixed_precision], properties.name, properties.total_memory // _MIB)


def compute_deterministically() -> None:
    """Have every operator give the same bits for the same input, or fail; call it before the first product.

    Attention's backward adds up in any order otherwise, and AdamW turns a gradient that is mere noise into a
    step as long as any: a resumed training would part from the uninterrupted one.
    """
    # cuBLAS looks at it, and so does PyTorch, which refuses products without it; an H100's default anyway.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    # What use_deterministic_algorithms(True) does, without the import of a compiler that is not used. Merely
    # warned, attention would go on adding in any order.
    torch.set_deterministic_debug_mode("error")
    # It would cost a kernel for every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it has it


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether the memory is full; torch's own error is its allocator's only, and CUDA takes some too."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def is_device_fault(error: BaseException) -> bool:
    """Say whether the device failed, which torch says of cuBLAS's and cuDNN's calls as a RuntimeError."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith(_FAULTS)


def first_line(error: BaseException) -> str:
    """Return what an error of torch's says before its advice and its stack."""
    return str(error).strip().partition("\n")[0].rstrip(".")
