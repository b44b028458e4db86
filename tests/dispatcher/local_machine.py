"""A LocalBackend with quick retries, and trainings that are Python scripts."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from dispatcher.backends.local import LocalBackend
from dispatcher.job import JobOptions, Manifest, build_job, load_template, trainer_container
from job_contract.request import TrainingRequest
from tests.dispatcher.support import wait_until

TEMPLATE = load_template(None)

COUNT = "open('{starts}', 'a').write('x'); "
"""Leaves a trace of each start."""
UNTIL = "import time, os\nwhile not os.path.exists('{go}'): time.sleep(0.01)\n"
"""Trains until the test makes the file."""


class Machine:
    """A LocalBackend that runs in a thread, with quick retries."""

    def __init__(self, folder: Path, slots: list[str], environment: dict[str, str]) -> None:
        self.state, self.models = folder / "state", folder / "models"
        self.backend = LocalBackend(
            self.state, self.models, slots, timedelta(seconds=0.05), {**os.environ, **environment}
        )
        self.changes: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.backend.run, args=(self.changes.append, self._stop))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def conditions(self, name: str) -> list[str]:
        snapshot = self.backend.snapshot(name)
        return [c["type"] for c in snapshot.job["status"].get("conditions", ())] if snapshot else []

    def wait_over(self, name: str, timeout: float = 20) -> tuple[str, str]:
        """Wait for the end of a Job; return type and reason of its last condition."""
        wait_until(lambda: self.conditions(name), timeout, f"{name} is over")
        last = self.job(name)["status"]["conditions"][-1]
        return last["type"], last["reason"]

    def job(self, name: str) -> Manifest:
        snapshot = self.backend.snapshot(name)
        assert snapshot
        return snapshot.job

    def pods(self, name: str) -> list[dict[str, Any]]:
        snapshot = self.backend.snapshot(name)
        return list(snapshot.pods) if snapshot else []

    def exit_codes(self, name: str) -> list[int | None]:
        return [ended(pod).get("exitCode") for pod in self.pods(name)]


@contextmanager
def machine(folder: Path, *slots: str, **environment: str) -> Iterator[Machine]:
    running = Machine(folder, list(slots) or ["cpu"], environment)
    try:
        yield running
    finally:
        running.stop()


def ended(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(pod["status"]["containerStatuses"][0]["state"].get("terminated") or {})


def training(script: str, name: str = "lora-42-a", **spec: Any) -> Manifest:
    """Return a Job whose container runs a Python script."""
    request = TrainingRequest(style_id=42, image_paths=["/data/a.jpg"], task_id=name)
    job = build_job(request, TEMPLATE, JobOptions())
    job["metadata"]["name"] = name
    job["spec"] |= spec
    trainer_container(job)["command"] = ["python", "-c", script]
    return job


def processes_of(folder: Path) -> list[psutil.Process]:
    """Return the living processes whose command line names a file of this test."""
    found = []
    for process in psutil.process_iter():
        try:
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.pid != os.getpid() and str(folder) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def starts(tmp_path: Path) -> int:
    path = tmp_path / "starts"
    return len(path.read_text()) if path.exists() else 0


def script(text: str, tmp_path: Path) -> str:
    return text.format(starts=tmp_path / "starts", go=tmp_path / "go", folder=tmp_path)
