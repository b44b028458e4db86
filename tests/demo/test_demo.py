"""The demo as a person runs it: real processes from publish to PATCH, and a file that loads."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest


def _start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo", "--folder", str(folder)],
        env={**os.environ, "EPOCHS": "1", "BASE_MODEL": "", "SAMPLE_STEPS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a terminal's Ctrl-C goes to the whole group; so does the test's
    )


def _left_behind(folder: Path) -> list[str]:
    """Return the processes that name the demo's folder in their command or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(process.cmdline()))
    return found


def _wait_until(done: Callable[[], Any], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "not reached in time"
        time.sleep(0.1)


@pytest.mark.usefixtures("amqp_url")
def test_a_message_becomes_a_lora_that_plain_diffusers_applies_at_scale_8(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = _start(folder)
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    bodies = [json.loads(line)["body"] for line in (folder / "statuses.jsonl").read_text().splitlines()]
    assert [body["training_status"] for body in bodies if "progress" not in body] == [
        "processing",
        "completed",
    ]
    weights = folder / "models" / "1" / "lora_weights.safetensors"
    assert bodies[-1]["model_path"] == str(weights)
    for name in (str(weights), "loss.png", "samples.png", "completed"):
        assert name in output
    assert not _left_behind(folder)

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder / "base", safety_checker=None)
    pipeline.load_lora_weights(weights.parent, weight_name=weights.name)
    scales = [s for module in pipeline.unet.modules() for s in getattr(module, "scaling", {}).values()]
    assert len(scales) == 128
    assert set(scales) == {8.0}


@pytest.mark.usefixtures("amqp_url")
def test_ctrl_c_in_the_middle_leaves_no_process_behind(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    demo = _start(folder)
    pods = folder / "state" / "jobs"
    _wait_until(lambda: list(pods.glob("*/pods/*/pid")), 120)
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert not _left_behind(folder)
