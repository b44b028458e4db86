"""The cluster that `make bench-dispatcher` measures in, and when each of its Jobs was added and completed."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import urllib3
from kubernetes import client, config, watch

from dispatcher.job import SELECTOR, Manifest
from job_contract.outcome import TrainingResult, encode
from tests.parts.control_plane import ControlPlane
from tests.parts.node_stand_in import NodeStandIn

_RESULT: Final = encode(
    TrainingResult(model_path="/models/1/lora_weights.safetensors", loss=0.1, epochs=100, seconds=1.0)
).decode()


class Cluster:
    """An API server; `added` and `completed` hold times of the monotonic clock by the Job's name."""

    def __init__(self, kubeconfig: str, namespace: str, kind: str) -> None:
        config.load_kube_config(kubeconfig)
        self.kubeconfig = kubeconfig
        self.namespace = namespace
        self.kind = kind
        self.added: dict[str, float] = {}
        self.completed: dict[str, float] = {}
        self._batch = client.BatchV1Api()
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, daemon=True).start()

    def wait(self, done: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise TimeoutError(f"not reached within {timeout:.0f} s")

    def create(self, jobs: list[Manifest], threads: int) -> float:
        """Create Jobs by the official client with nothing around it; return how many it made a second."""

        def create(job: Manifest) -> None:
            self._batch.create_namespaced_job(self.namespace, job, _preload_content=False).read()

        with ThreadPoolExecutor(threads) as pool:
            began = time.monotonic()
            list(pool.map(create, jobs))
            return len(jobs) / (time.monotonic() - began)

    def complete(self, names: Iterable[str]) -> None:
        """See to it that these Jobs succeed: the tests' own cluster does so without being told."""
        if self.kind == "control plane":
            with NodeStandIn(client.ApiClient(), self.namespace) as nodes:
                for name in names:
                    nodes.finish(name, 0, _RESULT)

    def _watch(self) -> None:
        stream = watch.Watch().stream(
            self._batch.list_namespaced_job, self.namespace, label_selector=SELECTOR, _preload_content=False
        )
        with contextlib.suppress(urllib3.exceptions.HTTPError):  # the API server has gone: the end
            for event in stream:
                self._note(event["raw_object"])

    def _note(self, job: Manifest) -> None:
        name, now = job["metadata"]["name"], time.monotonic()
        conditions = job.get("status", {}).get("conditions") or ()
        with self._changed:
            self.added.setdefault(name, now)
            if any(condition["type"] == "Complete" for condition in conditions):
                self.completed.setdefault(name, now)
            self._changed.notify_all()


def open_cluster(folder: Path, stack: ExitStack) -> Cluster:
    """Return that of KUBECONFIG, else a real control plane from KUBEBUILDER_ASSETS, else the tests' own."""
    if "KUBECONFIG" in os.environ:
        return Cluster(os.environ["KUBECONFIG"], os.environ.get("NAMESPACE", "default"), "KUBECONFIG")
    if "KUBEBUILDER_ASSETS" in os.environ:
        assets = Path(os.environ["KUBEBUILDER_ASSETS"])
        plane = stack.enter_context(ControlPlane(folder / "control-plane", assets))
        return Cluster(str(plane.kubeconfig), "default", "control plane")
    return Cluster(_own_cluster(folder, stack), "default", "the tests' own")


def _own_cluster(folder: Path, stack: ExitStack) -> str:
    """Run the tests' API server and Job controller in a process of their own; trainings take five seconds."""
    path = folder / "kubeconfig"
    command = [
        sys.executable,
        "-m",
        "tests.parts.job_controller",
        "--kubeconfig",
        str(path),
        "--seconds",
        "5",
    ]
    process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
    stack.callback(process.terminate)
    if process.stdout is None or not process.stdout.readline():
        raise RuntimeError("the tests' API server did not start")
    return str(path)
