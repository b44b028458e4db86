"""Tells the backend one status of one Job, and writes down on the Job that it was told."""

import time
from collections.abc import Callable
from datetime import datetime

import structlog

from dispatcher import report
from dispatcher.backends import Backend
from dispatcher.diagnosis import Diagnosis
from dispatcher.errors import StaleJobError
from dispatcher.job import Manifest, request_of, style_of, task_of
from dispatcher.metrics import Metrics
from dispatcher.relay_memory import JobMemory, RelayOptions
from dispatcher.relay_step import (
    PARKED_ANNOTATION,
    PROCESSING_ANNOTATION,
    TERMINAL_ANNOTATION,
    Status,
    Tell,
    TellProgress,
)
from dispatcher.webhook import Delivered, Refused, TryAgain, Webhook
from job_contract import names
from job_contract.progress import parse_progress


class Teller:
    """One attempt at a time; the relay calls it again when it says so."""

    def __init__(
        self,
        backend: Backend,
        webhook: Webhook,
        options: RelayOptions,
        metrics: Metrics,
        now: Callable[[], datetime],
        may_relay: Callable[[], bool],
    ) -> None:
        self._backend = backend
        self._webhook = webhook
        self._options = options
        self._metrics = metrics
        self._now = now
        self._may_relay = may_relay
        self._log = structlog.get_logger("relay")

    def host(self, job: Manifest) -> str:
        """Return the host that is told of a Job."""
        return report.host_of(self._url(job))

    def due_in(self, step: Tell | TellProgress, memory: JobMemory) -> float:
        """Return the seconds until the backend may be told; if not above 0, it is due from now on."""
        if isinstance(step, TellProgress):
            memory.choose_first_progress(self._options.progress_seconds)
            return memory.progress_due - time.monotonic()
        memory.due_since = memory.due_since or time.monotonic()
        return memory.retry_at - time.monotonic()

    def tell(self, status: Status, job: Manifest, diagnosis: Diagnosis, memory: JobMemory) -> float | None:
        """Make one attempt; return the seconds until the next look, None for at the next change."""
        url, delivery_id = self._url(job), f"msg_{job['metadata']['uid']}_{status.stage}"
        if url is None:
            answer: Delivered | Refused | TryAgain = Refused("there is no webhook_url and no BACKEND_URL")
        else:
            answer = self._webhook.patch(url, self._payload(status, job, diagnosis), delivery_id)
        self._metrics.patches.labels(status, type(answer).__name__.lower()).inc()
        if isinstance(answer, TryAgain) and not memory.is_too_late(self._options):
            delay = memory.next_delay(self._options, answer.retry_after)
            memory.retry_at = time.monotonic() + delay
            self._log.warning(
                "status not delivered", status=status, error=answer.reason, again_in=round(delay, 1)
            )
            return delay
        self._metrics.relay_seconds.observe(time.monotonic() - memory.due_since)
        memory.attempts, memory.first_failure, memory.due_since = 0, None, 0.0
        last_word = status is not Status.PROCESSING
        parked = None if isinstance(answer, Delivered) else answer.reason
        self._record(status, job, memory, parked, release=last_word and not diagnosis.running_pod)
        return None if last_word else 0

    def _record(
        self, status: Status, job: Manifest, memory: JobMemory, parked: str | None, *, release: bool
    ) -> None:
        """Write down on the Job that a status was delivered, or that it never will be."""
        when = self._now().isoformat(timespec="seconds")
        name = PROCESSING_ANNOTATION if status is Status.PROCESSING else TERMINAL_ANNOTATION
        told = {name: f"{'parked' if parked else status} {when}"}
        if parked:
            told[PARKED_ANNOTATION] = f"{status}: {parked}"
        memory.annotations.update(told)
        memory.unwritten = True
        self._annotate(job, memory, release=release)
        if parked:
            text = (
                f"The backend will not be told {status}: {parked}. Remove the annotation {name} to try again."
            )
            self._log.error("status parked", status=status, reason=parked)
            self._backend.record_event(job, "StatusParked", text, warning=True)
        else:
            self._log.info("status delivered", status=status)
            self._backend.record_event(job, "StatusRelayed", f"The backend was told {status}.")

    def _annotate(self, job: Manifest, memory: JobMemory, *, release: bool) -> None:
        """Record what was told; after the last word the finalizer goes in the same step, where it can."""
        if release:
            try:
                self.release(job, memory)
            except StaleJobError:
                # Somebody changed the Job meanwhile. What was told counts; the release follows.
                self._log.debug("the Job changed while its end was relayed")
            else:
                return
        self.write(job, memory)

    def write(self, job: Manifest, memory: JobMemory) -> None:
        """Write on the Job what was told of it."""
        patch_job(self._backend, job, {"metadata": {"annotations": memory.annotations}})
        memory.unwritten = False

    def release(self, job: Manifest, memory: JobMemory) -> None:
        """Write what was told, and take the finalizer away."""
        patch_job(
            self._backend,
            job,
            {"metadata": {"annotations": memory.annotations, "finalizers": without_ours(job)}},
        )
        memory.unwritten = False

    def tell_progress(self, pod: str, job: Manifest, memory: JobMemory) -> float | None:
        """Tell of progress at most every progress_seconds; a loss is made good by the next one.

        A thousand trainings at once are 33 tails of a log and PATCHes a second: 5 % of one core.
        """
        progress = parse_progress(self._backend.log_tail(pod, lines=20))
        url = self._url(job)
        if progress is None or progress == memory.progress:
            return max(1.0, self._options.progress_seconds / 6)
        if not self._may_relay():
            return None  # the log took so long that another may have told the end by now
        memory.progress_due = time.monotonic() + self._options.progress_seconds
        if url:
            payload = report.processing(style_of(job), task_of(job), progress)
            delivery_id = f"msg_{job['metadata']['uid']}_epoch_{progress.current_epoch}"
            answer = self._webhook.patch(url, payload, delivery_id)
            self._metrics.patches.labels("progress", type(answer).__name__.lower()).inc()
            if isinstance(answer, Delivered):
                memory.progress = progress
            else:
                self._log.info("progress not delivered", error=answer.reason)
        return self._options.progress_seconds

    def _payload(self, status: Status, job: Manifest, diagnosis: Diagnosis) -> report.Payload:
        style_id, task_id = style_of(job), task_of(job)
        if status is Status.PROCESSING:
            return report.processing(style_id, task_id)
        if status is Status.COMPLETED and diagnosis.result:
            return report.completed(style_id, task_id, diagnosis.result)
        if diagnosis.failure is None:
            raise ValueError(f"a Job that is {diagnosis.phase} cannot be told as {status}")
        return report.failed(style_id, task_id, diagnosis.failure)

    def _url(self, job: Manifest) -> str | None:
        request = request_of(job)
        if request and request.webhook_url:
            return request.webhook_url
        return report.default_url(self._options.backend_url, style_of(job))


def patch_job(backend: Backend, job: Manifest, change: Manifest) -> None:
    """Apply a merge patch; where it replaces the list of finalizers, only if nobody changed the Job."""
    version = job["metadata"].get("resourceVersion") if "finalizers" in change.get("metadata", {}) else None
    backend.patch(job["metadata"]["name"], change, version)


def finalizers_of(job: Manifest) -> list[str]:
    return list(job["metadata"].get("finalizers") or ())


def without_ours(job: Manifest) -> list[str]:
    return [finalizer for finalizer in finalizers_of(job) if finalizer != names.FINALIZER]
