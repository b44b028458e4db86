"""What bounds each side of the benchmark: the arithmetic of its work, and the peak of the device."""

import re
from typing import Final

TFLOP_PER_IMAGE: Final = {"trainer": 1.73, "reference": 1.73 + 1.13}
"""Of SD 1.5 at 512 x 512, counted by torch's FlopCounterMode: the UNet's forward, and backward without the
base's weights; the reference encodes picture and caption in every step, too."""
COUNTED_RESOLUTION: Final = 512
_DENSE_FP16_TFLOPS: Final = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200 NVL": 835,
    "H200": 989,
    "A100": 312,
    "L4": 121,
    "T4": 65,
}
"""By words of the device's name, from NVIDIA's data sheets, without sparsity; the first that fits counts."""


def fp16_peak_tflops(device_name: str) -> int | None:
    """Return the dense fp16 peak of a GPU that is in the table: an L40S is no L4."""
    for words, peak in _DENSE_FP16_TFLOPS.items():
        if re.search(rf"\b{words}\b", device_name):
            return peak
    return None


def tflop_per_image(side: str, *, full_size: bool, resolution: int) -> float | None:
    """Return a step's TFLOP for one image; None where they were not counted."""
    return TFLOP_PER_IMAGE[side] if full_size and resolution == COUNTED_RESOLUTION else None


def estimated_ratio(peak_tflops: float, part_of_peak: float, host_ms_per_image: float) -> float:
    """Return how many times the reference's rate the trainer's is, if only FLOPs and pictures took time.

    Both sides reach the same part of the peak. The reference's pictures are read while the device waits:
    it waits for the device in every step before it asks for the next batch.
    """
    ours, theirs = (TFLOP_PER_IMAGE[side] / (peak_tflops * part_of_peak) for side in ("trainer", "reference"))
    return (theirs + host_ms_per_image / 1000) / ours
