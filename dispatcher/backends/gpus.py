"""Which GPUs this machine has, without torch, and which of them are free."""

from collections.abc import Collection, Mapping, Sequence

import pynvml


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs as CUDA_VISIBLE_DEVICES names them; `["cpu"]` where there is none."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [device.strip() for device in chosen.split(",") if device.strip() not in ("", "-1")] or ["cpu"]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ["cpu"]  # no driver, so no GPU that could be used
    try:
        return [str(index) for index in range(pynvml.nvmlDeviceGetCount())] or ["cpu"]
    finally:
        pynvml.nvmlShutdown()


def free_gpus(gpus: Sequence[str], taken: Collection[str], wanted: int) -> list[str]:
    """Return as many free GPUs as are wanted, or as there are at all; none while too few are free."""
    free = [gpu for gpu in gpus if gpu not in taken]
    wanted = min(max(1, wanted), len(gpus))
    return free[:wanted] if len(free) >= wanted else []
