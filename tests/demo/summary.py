"""What the demo shows at its end."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.parts.receiver import Patch


def print_summary(folder: Path, style_id: int, patches: list[Patch], seconds: float) -> None:
    """Print the statuses with their times, the loss, and where the files are."""
    console = Console()
    statuses = Table("after", "status", "what the backend was told", title="PATCHes")
    first = patches[0].monotonic
    for patch in patches:
        body = {name: value for name, value in patch.json.items() if name not in ("style_id", "task_id")}
        status = body.pop("training_status")
        details = ", ".join(
            f"{name} {json.dumps(value)}" for name, value in body.items() if value is not None
        )
        statuses.add_row(f"{patch.monotonic - first:.1f} s", status, details)
    console.print(statuses)

    models = folder / "models" / str(style_id)
    metrics = models / "metrics.jsonl"
    losses = (
        [json.loads(line)["loss"] for line in metrics.read_text().splitlines()] if metrics.exists() else []
    )
    if losses:
        # Each epoch draws other noise, so single epochs jump: compare the means of the two halves.
        half = max(1, len(losses) // 2)
        start, end = sum(losses[:half]) / half, sum(losses[-half:]) / half
        console.print(f"Loss: {start:.4f} over the first {half} epochs, {end:.4f} over the last {half}")
    for name in ("lora_weights.safetensors", "loss.png", "samples.png"):
        if (models / name).exists():
            console.print(f"  {models / name}", soft_wrap=True)
    console.print(f"All in {seconds:.0f} s.")
