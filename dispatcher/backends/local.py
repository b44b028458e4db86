"""Jobs on this machine, with no cluster: the same manifest, retries, deadline and conditions.

All state is in a folder, so a dispatcher that was killed finds its Jobs, and the trainings that went
on without it, when it starts again. As many trainings run at once as there are GPUs, or one.
"""

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog

from dispatcher.backends import Snapshot
from dispatcher.backends.gpus import free_gpus
from dispatcher.backends.local_pod import LocalPod
from dispatcher.backends.local_status import (
    Action,
    Finish,
    Nothing,
    Remove,
    StartPod,
    StopPods,
    next_action,
)
from dispatcher.backends.local_store import LocalStore
from dispatcher.backends.merge_patch import merge_patch
from dispatcher.errors import BackendUnavailableError, DispatcherError, JobConflictError, StaleJobError
from dispatcher.job import Manifest, same_request, trainer_container
from dispatcher.pod_status import terminated

_SHUTDOWN_SECONDS = 25.0


class LocalBackend:
    """The Backend of one machine; one process at a time owns the state folder.

    Args:
        slots: the GPUs as CUDA_VISIBLE_DEVICES names them, or `["cpu"]`.
        first_backoff: before the first retry; Kubernetes has 10 s.
        environment: the dispatcher's own; the trainer's settings come from it.
        owner: False to look on beside the dispatcher that runs.

    Raises:
        DispatcherError: another dispatcher owns the state folder.
    """

    def __init__(
        self,
        state_dir: Path,
        models_dir: Path,
        slots: list[str],
        first_backoff: timedelta = timedelta(seconds=10),
        environment: Mapping[str, str] = os.environ,
        *,
        owner: bool = True,
    ) -> None:
        self._store = LocalStore(state_dir)
        self._models_dir = models_dir.resolve()
        self._slots = slots
        self._first_backoff = first_backoff
        self._environment = environment
        self._lock = threading.RLock()
        self._jobs: dict[str, Manifest] = {}
        self._pods: dict[str, list[LocalPod]] = {}
        self._killers: dict[str, threading.Timer] = {}
        self._changed: Callable[[str], None] = lambda _name: None
        self._wake = threading.Event()
        self._closed = False
        self._log = structlog.get_logger("local")
        self._is_owner = owner
        if owner:
            self._store.own()
        self.load()
        if owner:
            for name, pods in self._pods.items():
                for pod in pods:
                    self._follow(name, pod)

    def create(self, job: Manifest) -> bool:
        name = job["metadata"]["name"]
        with self._lock:
            existing = self._jobs.get(name)
            if existing is not None:
                if not same_request(existing, job):
                    raise JobConflictError(
                        f"task_id was used before for another request, whose Job is {name}"
                    )
                return False
            try:
                stored = self._store.add(job)
            except OSError as error:
                raise BackendUnavailableError(f"the Job {name} cannot be written: {error}") from error
            self._jobs[name], self._pods[name] = stored, []
        self._touch(name)
        return True

    def snapshot(self, name: str) -> Snapshot | None:
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                return None
            pods = tuple(copy.deepcopy(pod.pod) for pod in self._pods[name])
            return Snapshot(copy.deepcopy(job), pods)

    def pods_now(self, name: str) -> tuple[Manifest, ...]:
        snapshot = self.snapshot(name)
        return snapshot.pods if snapshot else ()

    def jobs_now(self) -> Iterator[Manifest]:
        for name in self.names():
            snapshot = self.snapshot(name)
            if snapshot:
                yield snapshot.job

    def events(self, about: str) -> tuple[Manifest, ...]:
        return ()  # the status of a Job of this machine says it all

    def names(self) -> list[str]:
        with self._lock:
            return list(self._jobs)

    def patch(self, name: str, change: dict[str, Any], resource_version: str | None = None) -> None:
        if not self._is_owner:
            raise DispatcherError("the Jobs of this machine change only through the dispatcher that runs")
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                return
            if resource_version and resource_version != job["metadata"]["resourceVersion"]:
                raise StaleJobError(f"the Job {name} has changed meanwhile")
            self._jobs[name] = merge_patch(job, change)
            self._save(name)
        self._touch(name)

    def stop_pods(self, name: str) -> None:
        with self._lock:
            self._stop(name, "the training was cancelled")

    def log_tail(self, pod: str, lines: int) -> str:
        with self._lock:
            found = [candidate for pods in self._pods.values() for candidate in pods if candidate.name == pod]
        return found[0].log_tail(lines) if found else ""

    def holds(self, model_path: str) -> bool:
        path = Path(model_path)
        return path.is_file() and path.stat().st_size > 0

    def record_event(self, job: Manifest, reason: str, message: str, *, warning: bool = False) -> None:
        log = self._log.warning if warning else self._log.debug
        log(message, reason=reason)

    def synced(self) -> bool:
        return True

    def silent_for(self) -> float:
        return 0.0

    def load(self) -> None:
        found = self._store.read()
        self._jobs = {name: job for name, (job, _) in found.items()}
        self._pods = {name: pods for name, (_, pods) in found.items()}

    def run(self, changed: Callable[[str], None], stop: threading.Event) -> None:
        """Play the Job controller until stop is set; then interrupt what runs: it resumes next time."""
        self._changed = changed
        for name in self.names():
            changed(name)
        watcher = threading.Thread(target=self._wake_on, args=(stop,), name="local-stop", daemon=True)
        watcher.start()
        while not stop.is_set():
            self._wake.clear()
            due = [self._sync(name) for name in sorted(self.names(), key=self._age)]
            now = datetime.now(UTC)
            waits = [max(0.0, (at - now).total_seconds()) for at in due if at]
            self._wake.wait(min(waits, default=None))
        self._shut_down()

    def _wake_on(self, stop: threading.Event) -> None:
        stop.wait()
        self._wake.set()

    def _sync(self, name: str) -> datetime | None:
        """Do what is due for a Job; return when to look again, None for at its next change."""
        with self._lock:
            job = self._jobs.get(name)
            if job is None:
                return None
            pods = [pod.pod for pod in self._pods[name]]
            now = datetime.now(UTC)
            try:
                return self._carry_out(next_action(job, pods, now, self._first_backoff), name, job)
            except OSError as error:
                self._log.error("the Job's state cannot be written", job=name, error=str(error))
                return now + timedelta(seconds=5)
            except Exception:  # noqa: BLE001 - one bad Job must not stop the rest
                self._log.exception("the Job cannot be carried on", job=name)
                return now + timedelta(minutes=1)

    def _carry_out(self, action: Action, name: str, job: Manifest) -> datetime | None:
        match action:
            case StartPod(at):
                if at > datetime.now(UTC):
                    return at
                slots = self._free_slots(_gpus(job))
                if slots:
                    self._start(name, job, slots)
                return None
            case StopPods():
                self._stop(name, "the Job was stopped")
                return None
            case Finish(conditions):
                self._jobs[name] = merge_patch(job, {"status": {"conditions": conditions}})
                self._save(name)
                self._touch(name)
                return datetime.now(UTC)
            case Remove():
                self._store.remove(name)
                del self._jobs[name], self._pods[name]
                self._changed(name)
                return None
            case Nothing(at):
                return at

    def _start(self, name: str, job: Manifest, slots: list[str]) -> None:
        pods = self._pods[name]
        pod = self._store.new_pod(name, len(pods) + 1)
        pod.start(job, self._models_dir, slots, self._environment)
        pods.append(pod)
        self._log.info("training started", job=name, attempt=len(pods), log=str(pod.folder / "log"))
        self._follow(name, pod)
        self._touch(name)

    def _follow(self, name: str, pod: LocalPod) -> None:
        if terminated(pod.pod) is None:
            threading.Thread(target=self._wait_for, args=(name, pod), name=pod.name, daemon=True).start()

    def _wait_for(self, name: str, pod: LocalPod) -> None:
        pod.wait()
        with self._lock:
            pod.take_down()
            killer = self._killers.pop(pod.name, None)
        if killer:
            killer.cancel()
        self._touch(name)

    def _stop(self, name: str, why: str) -> None:
        """Ask the pods of a Job to end, and kill those that do not within their grace period."""
        job = self._jobs[name]
        grace = job["spec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        for pod in self._pods[name]:
            if terminated(pod.pod) is None and pod.name not in self._killers:
                pod.interrupt(why)
                killer = self._killers[pod.name] = threading.Timer(grace, pod.signal, (signal.SIGKILL,))
                killer.daemon = True
                killer.start()

    def _shut_down(self) -> None:
        with self._lock:
            self._closed = True
            running = [pod for pods in self._pods.values() for pod in pods if terminated(pod.pod) is None]
            for name in self._jobs:
                self._stop(name, "the dispatcher was stopped")
        deadline = datetime.now(UTC) + timedelta(seconds=_SHUTDOWN_SECONDS)
        while any(terminated(pod.pod) is None for pod in running) and datetime.now(UTC) < deadline:
            self._wake.clear()
            self._wake.wait(0.5)
        for pod in running:
            pod.signal(signal.SIGKILL)
        self._store.disown()

    def _free_slots(self, wanted: int) -> list[str]:
        if self._closed:
            return []
        running = [pod for pods in self._pods.values() for pod in pods if terminated(pod.pod) is None]
        return free_gpus(self._slots, {slot for pod in running for slot in pod.slots}, wanted)

    def _touch(self, name: str) -> None:
        self._wake.set()
        self._changed(name)

    def _age(self, name: str) -> str:
        job = self._jobs.get(name)
        return str(job["metadata"]["creationTimestamp"]) if job else ""

    def _save(self, name: str) -> None:
        self._store.save(self._jobs[name])


def _gpus(job: Manifest) -> int:
    limits = trainer_container(job).get("resources", {}).get("limits", {})
    return int(limits.get("nvidia.com/gpu", 1))
