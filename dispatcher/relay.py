"""Brings every Job's statuses to the backend, in order, once each, for as long as it takes."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

import structlog

from dispatcher.backends import Backend, Snapshot
from dispatcher.deadline import with_deadline
from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, diagnose
from dispatcher.errors import BackendUnavailableError, StaleJobError
from dispatcher.failure_reasons import failure_without_file
from dispatcher.job import Manifest, style_of, task_of
from dispatcher.metrics import Metrics
from dispatcher.pod_status import has_ended
from dispatcher.relay_memory import JobMemory, RelayOptions
from dispatcher.relay_step import (
    LOOK_AGAIN_SECONDS,
    TERMINAL_ANNOTATION,
    Adopt,
    Extend,
    GiveUp,
    ReadEvents,
    Release,
    Start,
    Step,
    Tell,
    TellProgress,
    Wait,
    next_step,
)
from dispatcher.room import Room
from dispatcher.style_lanes import StyleLanes, end_of_hold
from dispatcher.teller import Teller, finalizers_of, patch_job
from dispatcher.webhook import Webhook
from dispatcher.work_queue import WorkQueue
from job_contract import names
from job_contract.outcome import TrainingFailure

_BLIND_SECONDS: Final = 120.0
"""A watch that is well hears of the API server twice in this time."""
_STARTERS: Final = 4
"""Workers beyond those that may be waiting for a backend."""


class Relay:
    """Looks at one Job at a time per worker; a Job is never with two workers at once."""

    def __init__(
        self,
        backend: Backend,
        webhook: Webhook,
        lanes: StyleLanes,
        options: RelayOptions,
        metrics: Metrics,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        finished: Callable[[], None] = lambda: None,
        may_relay: Callable[[], bool] = lambda: True,
    ) -> None:
        self._backend = backend
        self._teller = Teller(backend, webhook, options, metrics, now, may_relay)
        self._styles = lanes
        self._options = options
        self._now = now
        self._finished = finished
        self._may_relay = may_relay
        self._queue = WorkQueue(options.tellers, options.first_retry_seconds, options.most_retry_seconds)
        self._memories: dict[str, JobMemory] = {}
        self._room = Room(now)
        self._log = structlog.get_logger("relay")

    def changed(self, name: str) -> None:
        """Look at a Job soon."""
        self._queue.add(name)

    def phases(self) -> dict[str, int]:
        """Return how many Jobs are in which phase."""
        return dict(Counter(memory.phase for memory in list(self._memories.values()) if memory.phase))

    def start(self) -> list[threading.Thread]:
        """Start the workers; they end after `close`."""
        count = self._options.tellers + _STARTERS
        threads = [threading.Thread(target=self._work, name=f"relay-{i}", daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        return threads

    def close(self) -> None:
        self._queue.close()

    def _work(self) -> None:
        while (name := self._queue.get()) is not None:
            structlog.contextvars.clear_contextvars()
            structlog.contextvars.bind_contextvars(job=name)
            try:
                self._look_at(name)
                self._queue.succeeded(name)
            except StaleJobError:
                self._queue.add(name, self._options.first_retry_seconds)
            except BackendUnavailableError as error:
                self._log.warning("the Job could not be updated", error=str(error))
                self._queue.add_failed(name, error.retry_after)
            except Exception:  # noqa: BLE001 - the worker's last resort
                # One bad Job must not stop the rest; it is looked at again.
                self._log.exception("a Job could not be relayed")
                self._queue.add_failed(name)
            finally:
                self._queue.done(name)

    def _look_at(self, name: str) -> None:
        """Take steps until nothing more is due now."""
        while (snapshot := self._backend.snapshot(name)) is not None:
            memory = self._memory(name, snapshot)
            job = memory.overlay(snapshot.job)
            diagnosis = self._judge(job, memory, snapshot.pods)
            memory.phase = diagnosis.phase
            self._observe_style(job, diagnosis)
            if not self._may_relay():
                self._room.observe(job, diagnosis, snapshot.pods)
                return  # all Jobs are looked at again when this dispatcher's turn comes
            if memory.unwritten:
                self._teller.write(job, memory)
            step, diagnosis = self._due(job, diagnosis, memory, snapshot.pods)
            structlog.contextvars.bind_contextvars(style=style_of(job), task=task_of(job))
            if not self._may_relay():
                return  # what was written and read took so long that another may relay by now
            if isinstance(step, Tell | TellProgress) and not self._may_tell(step, job, memory):
                return
            again_in = self._take(step, job, diagnosis, memory)
            if again_in is None:
                return
            if again_in > 0:
                self._queue.add(name, again_in)
                return
        self._forget(name)

    def _due(
        self, job: Manifest, diagnosis: Diagnosis, memory: JobMemory, pods: tuple[Manifest, ...]
    ) -> tuple[Step, Diagnosis]:
        """Return what is due and what it follows from; a training is given up by what is so now."""
        name = job["metadata"]["name"]
        events: tuple[Manifest, ...] = ()
        step = self._next_step(job, diagnosis)
        if isinstance(step, ReadEvents):
            events = self._backend.events(step.about)
            diagnosis = memory.dated(diagnose(job, pods, events), self._now())
        else:
            memory.undated_since = None
        self._room.observe(job, diagnosis, pods)
        step = self._next_step(job, diagnosis)
        if isinstance(step, GiveUp) and not job["metadata"].get("deletionTimestamp"):
            # The watch of pods may be behind: a training that runs by now is not to be ended.
            diagnosis = memory.dated(diagnose(job, self._backend.pods_now(name), events), self._now())
            step = self._next_step(job, diagnosis)
        return step, diagnosis

    def _next_step(self, job: Manifest, diagnosis: Diagnosis) -> Step:
        return next_step(
            job,
            diagnosis,
            now=self._now(),
            grace=self._options.grace,
            is_next_of_style=self._styles.is_next(job["metadata"]["name"]),
            room_free_since=self._room.free_since(),
        )

    def _judge(self, job: Manifest, memory: JobMemory, pods: tuple[Manifest, ...]) -> Diagnosis:
        """Judge a Job that is over by its pods as they are now: the watch of pods may be behind the Jobs'."""
        diagnosis = self._diagnose(job, pods)
        if TERMINAL_ANNOTATION in job["metadata"]["annotations"]:
            memory.ended.clear()
            return diagnosis
        memory.ended.update({pod["metadata"]["name"]: pod for pod in pods if has_ended(pod)})
        if not diagnosis.terminal or not self._may_relay():
            return diagnosis
        if memory.final is None:
            now = {pod["metadata"]["name"]: pod for pod in self._backend.pods_now(job["metadata"]["name"])}
            memory.final = self._diagnose(job, tuple({**memory.ended, **now}.values()))
        return replace(memory.final, running_pod=diagnosis.running_pod)

    def _diagnose(self, job: Manifest, pods: tuple[Manifest, ...]) -> Diagnosis:
        diagnosis = diagnose(job, pods)
        if diagnosis.result and not self._backend.holds(diagnosis.result.model_path):
            return diagnosis.failed_with(failure_without_file(diagnosis.result.model_path))
        return diagnosis

    def _take(self, step: Step, job: Manifest, diagnosis: Diagnosis, memory: JobMemory) -> float | None:
        """Take a step; return the seconds until the next look, 0 for at once, None for at the next change."""
        match step:
            case Adopt():
                patch_job(
                    self._backend, job, {"metadata": {"finalizers": [*finalizers_of(job), names.FINALIZER]}}
                )
                return None
            case Start():
                self._start_training(job)
                return None
            case ReadEvents():
                return LOOK_AGAIN_SECONDS  # they said nothing; the next ones may
            case GiveUp(failure):
                return self._give_up(job, failure, memory)
            case Extend(deadline):
                metadata, change = job["metadata"], with_deadline(job, deadline)
                self._backend.patch(metadata["name"], change, metadata["resourceVersion"])
                return None
            case Tell(status):
                return self._teller.tell(status, job, diagnosis, memory)
            case TellProgress(pod):
                return self._teller.tell_progress(pod, job, memory)
            case Release():
                self._teller.release(job, memory)
                return None
            case Wait(seconds):
                return seconds

    def _may_tell(self, step: Tell | TellProgress, job: Manifest, memory: JobMemory) -> bool:
        """Whether the backend may be told now; if not, the Job is looked at when it may."""
        name, remaining = job["metadata"]["name"], self._teller.due_in(step, memory)
        if remaining > 0:
            self._queue.add(name, remaining)
            return False
        return self._queue.may_ask(name, self._teller.host(job))

    def _start_training(self, job: Manifest) -> None:
        if self._styles.start(job["metadata"]["name"]):
            patch_job(self._backend, job, end_of_hold(job))
            self._log.info("the style is free, the Job may start")

    def _give_up(self, job: Manifest, failure: TrainingFailure, memory: JobMemory) -> float | None:
        deleting = bool(job["metadata"].get("deletionTimestamp"))
        if deleting:
            # Before the verdict, which is the sign that this is done.
            self._backend.stop_pods(job["metadata"]["name"])
        change: Manifest = {"metadata": {"annotations": {}}} if deleting else with_deadline(job, 1)
        change["metadata"]["annotations"][VERDICT_ANNOTATION] = failure.model_dump_json()
        patch_job(self._backend, job, change)
        memory.annotations.update(change["metadata"]["annotations"])
        self._log.warning(
            "the training is given up", failure_code=failure.failure_code, reason=failure.failure_reason
        )
        self._backend.record_event(job, failure.failure_code, failure.failure_reason, warning=True)
        return 0 if deleting else None

    def observe_all(self) -> None:
        """Take note of the styles of all Jobs that are there, before the first request is taken."""
        for name in self._backend.names():
            snapshot = self._backend.snapshot(name)
            if snapshot is not None:
                self._observe_style(snapshot.job, self._diagnose(snapshot.job, snapshot.pods))

    def observe_now(self) -> None:
        """Take note of the styles of all Jobs as they are now, before the first is released.

        Who relayed before may have released some that the watch does not show yet.

        Raises:
            BackendUnavailableError: not now.
        """
        for job in self._backend.jobs_now():
            if not diagnose(job, ()).terminal:
                self._styles.observe(job)

    def _observe_style(self, job: Manifest, diagnosis: Diagnosis) -> None:
        if diagnosis.terminal and not diagnosis.running_pod:
            self._leave_style(job["metadata"]["name"])
        else:
            self._styles.observe(job)

    def _forget(self, name: str) -> None:
        """A Job that the backend does not show is gone, or is not there yet."""
        again_in = self._styles.expected_for(name)
        if again_in == 0 and self._backend.silent_for() > _BLIND_SECONDS:
            again_in = _BLIND_SECONDS  # nothing is known: it may be there, and run
        if again_in > 0:
            self._queue.add(name, again_in)
            return
        self._memories.pop(name, None)
        self._room.forget(name)
        self._leave_style(name)

    def _leave_style(self, name: str) -> None:
        others = self._styles.others(name)
        if self._styles.leave(name):
            for other in others:
                self._queue.add(other)
            self._finished()

    def _memory(self, name: str, snapshot: Snapshot) -> JobMemory:
        uid = snapshot.job["metadata"]["uid"]
        memory = self._memories.get(name)
        if memory is None or memory.uid != uid:
            memory = self._memories[name] = JobMemory(uid)
        return memory
