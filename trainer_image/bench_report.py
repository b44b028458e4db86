"""The benchmark's results as lines of text."""

from collections.abc import Iterator
from typing import Any, Final

from bench_bounds import COUNTED_RESOLUTION, TFLOP_PER_IMAGE, estimated_ratio, fp16_peak_tflops
from bench_sweep import FULL, SIDES

_COMPARED: Final = (
    "steady_images_per_second",
    "images_per_second",
    "first_step_seconds",
    "first_step_cpu_seconds",
    "cpu_seconds_per_image",
    "peak_memory_mib",
)
_ESTIMATED_GPU: Final = "H100 SXM"
_PARTS_OF_PEAK: Final = (0.1, 0.2, 0.3, 0.4)

Report = dict[str, Any]


def report_lines(report: Report) -> Iterator[str]:
    """Yield what a person reads of the results."""
    yield (
        f"{report['device']}, torch {report['torch']}, base {report['base']}, {report['resolution']} pixels, "
        f"{report['precision']}, best of {report['rounds']}"
    )
    yield "images a second, warm (from the first step's end on)"
    yield f"{'batch':>5}{'trainer':>20}{'reference':>20}{'ratio':>8}"
    for point in report["points"]:
        yield f"{point['batch_size']:5}{_rates(point, 'trainer')}{_rates(point, 'reference')}{_ratio(point)}"
    ours, theirs = (report["best"][side] for side in SIDES)
    yield (
        f"best against best: {ours['images_per_second']:.3g} at batch {ours['batch_size']}, "
        f"{theirs['images_per_second']:.3g} at batch {theirs['batch_size']}, "
        f"ratio {report['best']['ratio']:.2f}"
    )
    yield from _at_best(report)
    yield from _whole(report)
    yield from _inside(report)
    yield from _bounds(report)


def _whole(report: Report) -> Iterator[str]:
    whole = report.get("whole")
    if whole:
        samples = "with" if whole["samples"] else "without"
        yield (
            f"a whole training of {whole['pictures']} pictures and {whole['epochs']} epochs, {samples} "
            f"sample pictures: {whole['seconds']:.1f} s from the process's start to its exit"
        )


def _at_best(report: Report) -> Iterator[str]:
    ours, theirs = (_best_figures(report, side) for side in SIDES)
    yield f"{'at its best batch':26}{'trainer':>12}{'reference':>12}{'ratio':>8}"
    for name in _COMPARED:
        ratio = f"{ours[name] / theirs[name]:8.2f}" if theirs[name] else ""
        yield f"{name:26}{ours[name]:12.4g}{theirs[name]:12.4g}{ratio}"
    for side, figures in zip(SIDES, (ours, theirs), strict=True):
        start = ", ".join(f"{name} {moment:.2f} s" for name, moment in figures["start"].items())
        yield f"start of the {side}: {start}, first step {figures['first_step_seconds']:.2f} s"


def _inside(report: Report) -> Iterator[str]:
    ours, theirs = (report[side] for side in SIDES)
    yield (
        f"a step of the trainer costs {ours['step_over_own_unet']:.3f} of its own UNet's forward and "
        f"backward, adapter included, no CUDA graph (median of {ours['pairs']})"
    )
    yield f"{'operators of a step':30}{'trainer':>12}{'reference':>12}"
    for name in ("kernels_per_step", "host_syncs_per_step"):
        yield f"{name:30}{ours[name]:>12}{theirs[name]:>12}"
    for name in dict.fromkeys([*theirs["operators"], *ours["operators"]]):
        counts = [side["operators"].get(name, "-") for side in (ours, theirs)]
        yield f"{name:30}{counts[0]:>12}{counts[1]:>12}"


def _bounds(report: Report) -> Iterator[str]:
    """Yield what keeps each side from more; every figure is measured here, but for the device's peak."""
    yield "what bounds each side at its best batch"
    for side in SIDES:
        host = _best_figures(report, side)["host_work_ms_per_image"]
        limit = f", at most {1000 / host:.0f} images a second on one thread" if host else ""
        yield f"{side}: host work an image, ms: {host:.2f}{limit}"
        operators = report[side]["kernels_per_step"] / report["best"][side]["batch_size"]
        waits = report[side]["host_syncs_per_step"]
        yield f"{side}: {operators:.0f} operators an image to launch, {waits} waits for the device in a step"
        yield from _flop_bound(report, side)
    yield from _estimate(report)


def _flop_bound(report: Report, side: str) -> Iterator[str]:
    best, peak = report["best"][side], fp16_peak_tflops(report["device"])
    if peak and "part_of_fp16_peak" in best:
        tflop = TFLOP_PER_IMAGE[side]
        yield (
            f"{side}: {tflop:.2f} TFLOP an image, at most {peak / tflop:.0f} images a second at the data "
            f"sheet's {peak} TFLOP/s, of which it reached {best['part_of_fp16_peak']:.1%}"
        )


def _estimate(report: Report) -> Iterator[str]:
    peak = fp16_peak_tflops(_ESTIMATED_GPU)
    if peak and report["resolution"] == COUNTED_RESOLUTION:
        host = _best_figures(report, "reference")["host_work_ms_per_image"]
        ratios = ", ".join(f"{part:.0%}: {estimated_ratio(peak, part, host):.1f}" for part in _PARTS_OF_PEAK)
        yield (
            f"an estimate, not a measurement: SD 1.5 on an {_ESTIMATED_GPU} ({peak} TFLOP/s), a CPU like "
            "this one and pictures like these (0.4 megapixels), both sides at the same part of the peak: "
            f"ratio at {ratios}. Unknown is which part they reach; launches and waits are left out, and the "
            "reference has more of both."
        )


def _best_figures(report: Report, side: str) -> Report:
    batch_size = report["best"][side]["batch_size"]
    point: Report = next(point for point in report["points"] if point["batch_size"] == batch_size)
    figures: Report = point[side]
    return figures


def _rates(point: Report, side: str) -> str:
    figures = point.get(side)
    if not figures:
        return f"{'-':>20}"
    if FULL in figures:
        return f"{'out of memory':>20}"
    rates = f"{figures['steady_images_per_second']:.3g} ({figures['images_per_second']:.3g})"
    return f"{rates:>20}"


def _ratio(point: Report) -> str:
    rates = [point.get(side, {}).get("steady_images_per_second") for side in SIDES]
    return f"{rates[0] / rates[1]:8.2f}" if all(rates) else f"{'-':>8}"
