"""Brings every Job's statuses to the backend, in order, once each, for as long as it takes."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from dispatcher import report
from dispatcher.backends import Backend, Snapshot
from dispatcher.diagnosis import VERDICT_ANNOTATION, Diagnosis, diagnose, has_ended
from dispatcher.errors import BackendUnavailableError, StaleJobError
from dispatcher.job import request_of, style_of, task_of
from dispatcher.metrics import Metrics
from dispatcher.relay_step import (
    PARKED_ANNOTATION,
    PROCESSING_ANNOTATION,
    TERMINAL_ANNOTATION,
    Adopt,
    GiveUp,
    Notice,
    Release,
    Start,
    Step,
    Tell,
    TellProgress,
    Wait,
    next_step,
)
from dispatcher.retry import backoff_seconds
from dispatcher.style_lanes import StyleLanes
from dispatcher.webhook import Delivered, Refused, TryAgain, Webhook
from dispatcher.work_queue import WorkQueue
from job_contract import names
from job_contract.outcome import FailureCode, TrainingFailure
from job_contract.progress import Progress, parse_progress

Patch = dict[str, Any]


@dataclass(frozen=True)
class RelayOptions:
    backend_url: str | None = None
    progress_seconds: float = 30.0
    grace: timedelta = timedelta(minutes=10)
    give_up_after: timedelta = timedelta(days=7)
    first_retry_seconds: float = 1.0
    most_retry_seconds: float = 300.0


@dataclass
class _Lane:
    """What this process remembers of a Job; losing it costs a repetition at the most, never a status."""

    uid: str
    annotations: dict[str, str] = field(default_factory=dict)
    """Written to the Job by us, and perhaps not yet in the snapshot."""
    phase: str = ""
    due_since: float | None = None
    attempts: int = 0
    first_failure: float | None = None
    retry_at: float = 0.0
    """When the backend may be told again, in seconds of the monotonic clock."""
    progress: Progress | None = None
    progress_due: float = 0.0
    ended: dict[str, Patch] = field(default_factory=dict)
    """The pods that were seen to have ended; with a short TTL their last words outlast them here only."""
    final: Diagnosis | None = None
    """How the Job ended, once that was made sure of."""

    def overlay(self, job: Patch) -> Patch:
        """Return the Job with what we wrote to it, until the snapshot has caught up."""
        metadata = job["metadata"]
        shown = metadata.get("annotations") or {}
        self.annotations = {key: text for key, text in self.annotations.items() if shown.get(key) != text}
        return {**job, "metadata": {**metadata, "annotations": {**shown, **self.annotations}}}


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
        self._webhook = webhook
        self._styles = lanes
        self._options = options
        self._now = now
        self._finished = finished
        self._may_relay = may_relay
        self._metrics = metrics
        self._queue = WorkQueue()
        self._lanes: dict[str, _Lane] = {}
        self._log = structlog.get_logger("relay")

    def changed(self, name: str) -> None:
        """Look at a Job soon."""
        self._queue.add(name)

    def phases(self) -> dict[str, int]:
        """Return how many Jobs are in which phase."""
        return dict(Counter(lane.phase for lane in list(self._lanes.values()) if lane.phase))

    def start(self, workers: int) -> list[threading.Thread]:
        """Start the worker threads; they end after `close`."""
        threads = [
            threading.Thread(target=self._work, name=f"relay-{i}", daemon=True) for i in range(workers)
        ]
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
            except StaleJobError:
                self._queue.add(name, self._options.first_retry_seconds)
            except BackendUnavailableError as error:
                self._log.warning("the Job could not be updated", error=str(error))
                self._queue.add(name, self._delay(name, error.retry_after))
            except Exception:  # noqa: BLE001 - the worker's last resort
                # One bad Job must not stop the rest; it is looked at again.
                self._log.exception("a Job could not be relayed")
                self._queue.add(name, self._delay(name))
            finally:
                self._queue.done(name)

    def _look_at(self, name: str) -> None:
        """Take steps until nothing more is due now."""
        while (snapshot := self._backend.snapshot(name)) is not None:
            lane = self._lane(name, snapshot)
            job = lane.overlay(snapshot.job)
            lane.ended.update({pod["metadata"]["name"]: pod for pod in snapshot.pods if has_ended(pod)})
            diagnosis = self._final(job, lane, self._diagnose(Snapshot(job, snapshot.pods)))
            lane.phase = diagnosis.phase
            self._observe_style(job, diagnosis)
            if not self._may_relay():
                return  # all Jobs are looked at again when this dispatcher's turn comes
            step = next_step(
                job,
                diagnosis,
                now=self._now(),
                grace=self._options.grace,
                is_next_of_style=self._styles.is_next(name),
            )
            structlog.contextvars.bind_contextvars(style=style_of(job), task=task_of(job))
            again_in = self._take(step, job, diagnosis, lane)
            if again_in is None:
                return
            if again_in > 0:
                self._queue.add(name, again_in)
                return
        self._forget(name)

    def _final(self, job: Patch, lane: _Lane, diagnosis: Diagnosis) -> Diagnosis:
        """Judge a Job that is over by its pods as they are now: the watch of pods may be behind the Jobs'."""
        told = TERMINAL_ANNOTATION in (job["metadata"].get("annotations") or {})
        if not diagnosis.terminal or told or not self._may_relay():
            return diagnosis
        if lane.final is None:
            pods = {pod["metadata"]["name"]: pod for pod in self._backend.pods_now(job["metadata"]["name"])}
            lane.final = self._diagnose(Snapshot(job, tuple({**lane.ended, **pods}.values())))
        return replace(lane.final, running_pod=diagnosis.running_pod)

    def _diagnose(self, snapshot: Snapshot) -> Diagnosis:
        diagnosis = diagnose(snapshot.job, snapshot.pods)
        if diagnosis.result and not self._backend.holds(diagnosis.result.model_path):
            failure = TrainingFailure(
                failure_code=FailureCode.STORAGE_ERROR,
                failure_reason=f"The trainer reported {diagnosis.result.model_path}, but no file is there; "
                "check the disk and the models folder, then send the request again.",
            )
            return diagnosis.failed_with(failure)
        return diagnosis

    def _take(self, step: Step, job: Patch, diagnosis: Diagnosis, lane: _Lane) -> float | None:
        """Take a step; return the seconds until the next look, 0 for at once, None for at the next change."""
        match step:
            case Adopt():
                self._patch(job, {"metadata": {"finalizers": [*_finalizers(job), names.FINALIZER]}})
                return None
            case Start():
                self._patch(job, {"spec": {"suspend": False}})
                self._log.info("the style is free, the Job may start")
                return None
            case GiveUp(failure):
                return self._give_up(job, failure, lane)
            case Tell(notice):
                return self._tell(notice, job, diagnosis, lane)
            case TellProgress(pod):
                return self._tell_progress(pod, job, lane)
            case Release():
                self._release(job, lane)
                return None
            case Wait(seconds):
                return seconds

    def _give_up(self, job: Patch, failure: TrainingFailure, lane: _Lane) -> float | None:
        change: Patch = {"metadata": {"annotations": {VERDICT_ANNOTATION: failure.model_dump_json()}}}
        if not job["metadata"].get("deletionTimestamp"):
            change["spec"] = {"activeDeadlineSeconds": 1}  # the Job controller then ends the Job and its pods
        self._patch(job, change)
        lane.annotations.update(change["metadata"]["annotations"])
        self._log.warning(
            "the training is given up", failure_code=failure.failure_code, reason=failure.failure_reason
        )
        self._backend.record_event(job, failure.failure_code, failure.failure_reason, warning=True)
        if job["metadata"].get("deletionTimestamp"):
            self._backend.stop_pods(job["metadata"]["name"])
            return 0
        return None

    def _tell(self, notice: Notice, job: Patch, diagnosis: Diagnosis, lane: _Lane) -> float | None:
        remaining = lane.retry_at - time.monotonic()
        if remaining > 0:
            return remaining
        url, delivery_id = self._url(job), f"msg_{job['metadata']['uid']}_{notice.stage}"
        lane.due_since = lane.due_since or time.monotonic()
        if url is None:
            answer: Delivered | Refused | TryAgain = Refused("there is no webhook_url and no BACKEND_URL")
        else:
            answer = self._webhook.patch(url, self._payload(notice, job, diagnosis), delivery_id)
        self._metrics.patches.labels(notice, type(answer).__name__.lower()).inc()
        if isinstance(answer, TryAgain) and not self._too_late(lane):
            delay = self._delay(job["metadata"]["name"], answer.retry_after)
            lane.retry_at = time.monotonic() + delay
            self._log.warning(
                "status not delivered", status=notice, error=answer.reason, again_in=round(delay, 1)
            )
            return delay
        self._metrics.relay_seconds.observe(time.monotonic() - lane.due_since)
        lane.attempts, lane.first_failure, lane.due_since = 0, None, None
        last_word = notice is not Notice.PROCESSING
        parked = None if isinstance(answer, Delivered) else answer.reason
        self._record(notice, job, lane, parked, release=last_word and not diagnosis.running_pod)
        return None if last_word else 0

    def _record(self, notice: Notice, job: Patch, lane: _Lane, parked: str | None, *, release: bool) -> None:
        """Write down on the Job that a status was delivered, or that it never will be."""
        when = self._now().isoformat(timespec="seconds")
        name = PROCESSING_ANNOTATION if notice is Notice.PROCESSING else TERMINAL_ANNOTATION
        told = {name: f"{'parked' if parked else notice} {when}"}
        if parked:
            told[PARKED_ANNOTATION] = f"{notice}: {parked}"
        lane.annotations.update(told)
        self._annotate(job, lane, release=release)
        if parked:
            text = (
                f"The backend will not be told {notice}: {parked}. Remove the annotation {name} to try again."
            )
            self._log.error("status parked", status=notice, reason=parked)
            self._backend.record_event(job, "StatusParked", text, warning=True)
        else:
            self._log.info("status delivered", status=notice)
            self._backend.record_event(job, "StatusRelayed", f"The backend was told {notice}.")

    def _annotate(self, job: Patch, lane: _Lane, *, release: bool) -> None:
        """Record what was told; after the last word the finalizer goes in the same step, where it can."""
        if release:
            try:
                self._release(job, lane)
            except StaleJobError:
                # Somebody changed the Job meanwhile. What was told counts; the release follows.
                self._log.debug("the Job changed while its end was relayed")
            else:
                return
        self._patch(job, {"metadata": {"annotations": lane.annotations}})

    def _release(self, job: Patch, lane: _Lane) -> None:
        """Take the finalizer away, and write what an earlier patch may have failed to write."""
        self._patch(job, {"metadata": {"annotations": lane.annotations, "finalizers": _without_ours(job)}})

    def _tell_progress(self, pod: str, job: Patch, lane: _Lane) -> float:
        """Tell of progress at most every progress_seconds; a loss is made good by the next one."""
        remaining = lane.progress_due - time.monotonic()
        if remaining > 0:
            return remaining
        progress = parse_progress(self._backend.log_tail(pod, lines=20))
        url = self._url(job)
        if progress is None or progress == lane.progress:
            return max(1.0, self._options.progress_seconds / 6)
        lane.progress_due = time.monotonic() + self._options.progress_seconds
        if url:
            payload = report.processing(style_of(job), task_of(job), progress)
            delivery_id = f"msg_{job['metadata']['uid']}_epoch_{progress.current_epoch}"
            answer = self._webhook.patch(url, payload, delivery_id)
            self._metrics.patches.labels("progress", type(answer).__name__.lower()).inc()
            if isinstance(answer, Delivered):
                lane.progress = progress
            else:
                self._log.info("progress not delivered", error=answer.reason)
        return self._options.progress_seconds

    def _patch(self, job: Patch, change: Patch) -> None:
        # A list of finalizers replaces the whole list, so nobody may have changed it meanwhile.
        version = (
            job["metadata"].get("resourceVersion") if "finalizers" in change.get("metadata", {}) else None
        )
        self._backend.patch(job["metadata"]["name"], change, version)

    def observe_all(self) -> None:
        """Take note of the styles of all Jobs that are there, before the first request is taken."""
        for name in self._backend.names():
            snapshot = self._backend.snapshot(name)
            if snapshot is not None:
                self._observe_style(snapshot.job, self._diagnose(snapshot))

    def _observe_style(self, job: Patch, diagnosis: Diagnosis) -> None:
        if diagnosis.terminal and not diagnosis.running_pod:
            self._leave_style(job["metadata"]["name"])
        else:
            self._styles.observe(job)

    def _forget(self, name: str) -> None:
        """A Job that the backend does not show is gone, or is not there yet."""
        expected_for = self._styles.expected_for(name)
        if expected_for > 0:
            self._queue.add(name, expected_for)
            return
        self._lanes.pop(name, None)
        self._leave_style(name)

    def _leave_style(self, name: str) -> None:
        others = self._styles.others(name)
        if self._styles.leave(name):
            for other in others:
                self._queue.add(other)
            self._finished()

    def _lane(self, name: str, snapshot: Snapshot) -> _Lane:
        uid = snapshot.job["metadata"]["uid"]
        lane = self._lanes.get(name)
        if lane is None or lane.uid != uid:
            lane = self._lanes[name] = _Lane(
                uid, progress_due=time.monotonic() + self._options.progress_seconds
            )
        return lane

    def _delay(self, name: str, at_least: float | None = None) -> float:
        lane = self._lanes.setdefault(name, _Lane(uid=""))
        lane.attempts += 1
        lane.first_failure = lane.first_failure or time.monotonic()
        return backoff_seconds(
            lane.attempts,
            first=self._options.first_retry_seconds,
            most=self._options.most_retry_seconds,
            at_least=at_least,
        )

    def _too_late(self, lane: _Lane) -> bool:
        limit = self._options.give_up_after.total_seconds()
        return lane.first_failure is not None and time.monotonic() - lane.first_failure > limit

    def _payload(self, notice: Notice, job: Patch, diagnosis: Diagnosis) -> report.Payload:
        style_id, task_id = style_of(job), task_of(job)
        if notice is Notice.PROCESSING:
            return report.processing(style_id, task_id)
        if notice is Notice.COMPLETED and diagnosis.result:
            return report.completed(style_id, task_id, diagnosis.result)
        if diagnosis.failure is None:
            raise ValueError(f"a Job that is {diagnosis.phase} cannot be told as {notice}")
        return report.failed(style_id, task_id, diagnosis.failure)

    def _url(self, job: Patch) -> str | None:
        request = request_of(job)
        if request and request.webhook_url:
            return request.webhook_url
        return report.default_url(self._options.backend_url, style_of(job))


def _finalizers(job: Patch) -> list[str]:
    return list(job["metadata"].get("finalizers") or ())


def _without_ours(job: Patch) -> list[str]:
    return [finalizer for finalizer in _finalizers(job) if finalizer != names.FINALIZER]
