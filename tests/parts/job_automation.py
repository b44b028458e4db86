"""Runs all Jobs of an ApiServer by themselves, in one thread, in the way that JobController does by hand.

    automation = controller.run_all(lambda job, attempt: Run(seconds=0.1))     attempt counts from 1
    automation.retry_delay = 0.5       seconds before a failed pod's successor; Kubernetes waits 10 s, 20 s
    automation.pause(), automation.resume()      a cluster in which nothing happens for a while
    controller.stop()

    controller.run_jobs()              the Job controller's part alone: node_stand_in.py runs the pods

A pod whose Run has seconds=None runs until it is deleted, its Job's deadline passes, or the test ends it.
"""

import copy
import heapq
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from job_contract.names import MODELS_MOUNT_DIR, REQUEST_ANNOTATION, WEIGHTS_FILE_NAME
from job_contract.outcome import TrainingResult, encode
from job_contract.request import DEFAULT_EPOCHS
from tests.parts import job_states, pod_states
from tests.parts.kube_store import Object

if TYPE_CHECKING:
    from tests.parts.job_controller import JobController


@dataclass(frozen=True)
class Run:
    """How one pod ends; without a message, exit 0 has the one that the contract asks for."""

    exit_code: int = 0
    message: str | None = None
    reason: str = ""
    """OOMKilled, or empty for what follows from the exit code."""
    seconds: float | None = 0.0
    log: str = ""


@dataclass(frozen=True)
class _Running:
    run: Run
    ends: float | None
    """In seconds of time.monotonic(); None for never."""


Decide = Callable[[dict[str, Any], int], Run]
"""The Job and the number of the attempt, from 1."""


def succeed(job: dict[str, Any], attempt: int) -> Run:
    return Run()


class Automation:
    def __init__(self, controller: "JobController", decide: Decide | None) -> None:
        """Without decide, the pods are made and counted, but somebody else runs and ends them."""
        self.retry_delay = 0.0
        self._controller = controller
        self._store = controller.store
        self._decide = decide
        self._runs: dict[str, _Running] = {}
        """By the pod's name."""
        self._attempts: dict[str, int] = {}
        """By the Job's uid."""
        self._retry_at: dict[tuple[str, int], float] = {}
        """By the Job's uid and its failed pods."""
        self._deadlines: set[tuple[str, str]] = set()
        """The Jobs, by uid and start, whose deadline has its timer."""
        self._timers: list[tuple[float, str]] = []
        """A heap of when to look at which Job again, in seconds of time.monotonic()."""
        self._paused = self._stopped = False
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def pause(self) -> None:
        with self._store.changed:
            self._paused = True

    def resume(self) -> None:
        with self._store.changed:
            self._paused = False
            self._store.changed.notify_all()

    def stop(self) -> None:
        with self._store.changed:
            self._stopped = True
            self._store.changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        version = 0
        while True:
            with self._store.changed:
                jobs, deleted_pods = self._changed_since(version)
                while not self._stopped and (self._paused or not (jobs or deleted_pods)):
                    self._store.changed.wait(self._seconds_to_next_timer())
                    jobs, deleted_pods = self._changed_since(version)
                if self._stopped:
                    return
                version = self._store.version
            for name in sorted(jobs):
                with self._store.changed:  # so that no client changes what is looked at
                    self._advance(name)
            for name in sorted(deleted_pods):
                with self._store.changed:
                    stored = self._store.get("pods", (self._controller.namespace, name))
                    if stored is not None and self._decide is not None:
                        self._controller.end_deleted_pod(stored.value)

    def _changed_since(self, version: int) -> tuple[set[str], set[str]]:
        """Return the Jobs to look at, and the pods that are being deleted."""
        changes = self._store.changes_after("jobs", version)
        jobs = {change.after.value["metadata"]["name"] for change in changes}
        pods = [change.after.value["metadata"] for change in self._store.changes_after("pods", version)]
        jobs |= {pod["labels"]["job-name"] for pod in pods if "job-name" in pod.get("labels", {})}
        if not self._paused:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                jobs.add(heapq.heappop(self._timers)[1])
        return jobs, {pod["name"] for pod in pods if "deletionTimestamp" in pod}

    def _seconds_to_next_timer(self) -> float:
        if self._paused or not self._timers:
            return 0.5
        return min(0.5, max(0.0, self._timers[0][0] - time.monotonic()))

    def _look_again(self, job_name: str, seconds: float) -> None:
        # A little later than due: the clock of the Job's timestamps is another one.
        heapq.heappush(self._timers, (time.monotonic() + seconds + 0.01, job_name))

    def _advance(self, name: str) -> None:
        """Do for one Job what is due."""
        if self._store.get("jobs", (self._controller.namespace, name)) is None:
            return
        self._controller.sync(name)
        job = self._controller.job(name)
        if job_states.is_over(job):
            self._expire(job)
        elif not job["spec"]["suspend"] and not self._past_deadline(job):
            pods = [pod for pod in self._controller.pods(name) if not pod_states.is_finished(pod)]
            for pod in pods:
                if "deletionTimestamp" not in pod["metadata"] and self._decide is not None:
                    self._run(job, pod, self._decide)
            waits_for_pod = job_states.verdict(job) is None and "deletionTimestamp" not in job["metadata"]
            if not pods and waits_for_pod and self._may_retry(job):
                self._controller.create_pod(name)

    def _run(self, job: Object, pod: Object, decide: Decide) -> None:
        """Start a pod's container, or end it when its time has come."""
        name, job_name = pod["metadata"]["name"], job["metadata"]["name"]
        if name not in self._runs:
            attempt = self._attempts.get(job["metadata"]["uid"], 0) + 1
            self._attempts[job["metadata"]["uid"]] = attempt
            run = decide(copy.deepcopy(job), attempt)
            ends = None if run.seconds is None else time.monotonic() + run.seconds
            self._runs[name] = _Running(run, ends)
            self._controller.schedule(name)
            self._controller.run(name)
            self._controller.write_log(name, run.log)
            if run.seconds:
                self._look_again(job_name, run.seconds)
        running = self._runs[name]
        if running.ends is not None and running.ends <= time.monotonic():
            run = running.run
            message = _message(job) if run.message is None and run.exit_code == 0 else run.message
            self._controller.exit(name, run.exit_code, message or "", run.reason)

    def _may_retry(self, job: Object) -> bool:
        """Say whether the back-off after the last failed pod is over."""
        if not job["status"].get("failed") or not self.retry_delay:
            return True
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        due = self._retry_at.setdefault((uid, job["status"]["failed"]), time.monotonic() + self.retry_delay)
        if due > time.monotonic():
            self._look_again(name, due - time.monotonic())
            return False
        return True

    def _past_deadline(self, job: Object) -> bool:
        limit, start = job["spec"].get("activeDeadlineSeconds"), job["status"].get("startTime")
        if limit is None or start is None or job_states.verdict(job):
            return False
        left = limit - _seconds_since(start)
        if left > 0:
            if (job["metadata"]["uid"], start) not in self._deadlines:
                self._deadlines.add((job["metadata"]["uid"], start))
                self._look_again(job["metadata"]["name"], left)
            return False
        self._controller.exceed_deadline(job["metadata"]["name"])
        return True

    def _expire(self, job: Object) -> None:
        """Delete a Job that is over as the TTL controller does."""
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or "deletionTimestamp" in job["metadata"]:
            return
        ends = [job_states.condition(job, kind) for kind in job_states.TERMINAL.values()]
        over = next(item["lastTransitionTime"] for item in ends if item)
        left = ttl - _seconds_since(over)
        if left > 0:
            self._look_again(job["metadata"]["name"], left)
        else:
            self._controller.expire_ttl(job["metadata"]["name"])


def _seconds_since(timestamp: str) -> float:
    return time.time() - datetime.fromisoformat(timestamp).timestamp()


def _message(job: Object) -> str:
    """Return the termination message of a training that went well, for the request in the Job."""
    annotations = job["spec"]["template"].get("metadata", {}).get("annotations", {})
    request = json.loads(annotations.get(REQUEST_ANNOTATION, "{}"))
    path = f"{MODELS_MOUNT_DIR}/{request.get('style_id', 'unknown')}/{WEIGHTS_FILE_NAME}"
    epochs = request.get("num_epochs", DEFAULT_EPOCHS)
    return encode(TrainingResult(model_path=path, loss=0.1, epochs=epochs, seconds=1.0)).decode()
