"""A whole training as people start it: a process of its own, sample pictures and all, from start to exit."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_plan import BenchPlan


def time_whole_training(plan: BenchPlan) -> dict[str, Any]:
    """Return the seconds from the process's start to its exit, and what was trained meanwhile."""
    with tempfile.TemporaryDirectory() as models:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "BASE_MODEL": plan.base,
            "MODELS_DIR": models,
            "RESOLUTION": str(plan.resolution),
            "MIXED_PRECISION": plan.precision,
            "DEVICES": "1",
        }
        options = ["--epochs", str(plan.epochs), "--batch-size", str(plan.batch_size)]
        started = time.monotonic()
        result = subprocess.run(
            [sys.executable, "-m", "trainer", "--style-id", "1", "--images", plan.pictures, *options],
            env=environment,
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - started
        if result.returncode:
            sys.exit(f"the whole training failed:\n{result.stderr}")
        drawn = (Path(models) / "1/samples.png").exists()
    return {
        "pictures": plan.picture_count,
        "epochs": plan.epochs,
        "samples": drawn,
        "seconds": seconds,
    }
