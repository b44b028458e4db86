"""A message becomes a Job: parse, check, make room, create. What came of it decides the ack."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from dispatcher import report
from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.backends import Backend, Snapshot
from dispatcher.errors import (
    BackendBusyError,
    BackendUnavailableError,
    JobConflictError,
    JobRefusedError,
    RefusedMessageError,
    Sender,
)
from dispatcher.job import JobOptions, Manifest, build_job
from dispatcher.message import parse_message
from dispatcher.metrics import Metrics
from dispatcher.relay_step import TERMINAL_ANNOTATION
from dispatcher.retry import backoff_seconds
from dispatcher.style_lanes import StyleLanes, hold
from dispatcher.verdict import Ack, Postpone, Refuse, Verdict
from job_contract.outcome import FailureCode, TrainingFailure
from job_contract.redaction import redact
from job_contract.request import TrainingRequest


@dataclass(frozen=True)
class IntakeOptions:
    backend_url: str | None = None
    max_active_jobs: int = 0
    """0 for no limit."""


class Intake:
    """Handles messages on several threads at once."""

    def __init__(
        self,
        backend: Backend,
        lanes: StyleLanes,
        template: Manifest,
        job_options: JobOptions,
        allowed_hosts: AllowedHosts,
        options: IntakeOptions,
        changed: Callable[[str], None],
        metrics: Metrics,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._backend = backend
        self._styles = lanes
        self._template = template
        self._job_options = job_options
        self._allowed_hosts = allowed_hosts
        self._options = options
        self._changed = changed  # the relay then sees whether the Job is there, and its place in the style
        self._metrics = metrics
        self._clock_ns = clock_ns
        self._failures = 0
        self._room = threading.Lock()
        self._log = structlog.get_logger("intake")

    def handle(self, body: bytes, message_id: str | None) -> Verdict:
        """Return what becomes of a message, once that has been made sure of."""
        structlog.contextvars.clear_contextvars()
        try:
            request = parse_message(body, message_id)
            self._check_url(request)
            with self._metrics.job_create_seconds.time():
                verdict = self._create(request)
        except RefusedMessageError as error:
            verdict = self._refuse(str(error), error.sender)
        self._metrics.messages.labels(type(verdict).__name__.lower()).inc()
        return verdict

    def _check_url(self, request: TrainingRequest) -> None:
        sender = Sender(request.style_id, request.task_id)
        if request.webhook_url:
            refusal = self._allowed_hosts.refusal(request.webhook_url)
            if refusal:
                raise RefusedMessageError(f"webhook_url {refusal}", sender)
        elif not self._options.backend_url:
            raise RefusedMessageError("webhook_url is missing, and BACKEND_URL is not set", sender)

    def _create(self, request: TrainingRequest) -> Verdict:
        job = build_job(request, self._template, self._job_options)
        name = job["metadata"]["name"]
        structlog.contextvars.bind_contextvars(style=request.style_id, task=request.task_id, job=name)
        accepted = self._clock_ns()
        with self._room:
            if self._is_full(name):
                return Postpone(30.0, f"MAX_ACTIVE_JOBS={self._options.max_active_jobs} Jobs are active")
            place = self._styles.enter(job, accepted)
        if place is not None:
            hold(job, place)
        try:
            created = self._backend.create(job)
        except JobRefusedError as error:
            self._styles.cancel(name)
            raise RefusedMessageError(str(error), _sender(request)) from error
        except JobConflictError as error:
            self._styles.cancel(name)
            first = self._backend.snapshot(name)
            if first and TERMINAL_ANNOTATION in (first.job["metadata"].get("annotations") or {}):
                raise RefusedMessageError(str(error), _sender(request)) from error
            return self._refuse_silently(str(error), first)
        except BackendUnavailableError as error:
            self._failures += 1
            seconds = backoff_seconds(self._failures, first=1, most=60, at_least=error.retry_after)
            level = "full" if isinstance(error, BackendBusyError) else "unavailable"
            return Postpone(seconds, f"the backend of Jobs is {level}: {error}")
        finally:
            self._changed(name)
        self._failures = 0
        if created:
            self._log.info("Job created", images=len(request.image_paths), waits=place is not None)
        else:
            self._log.info("the Job of this message exists already")
        return Ack()

    def _is_full(self, name: str) -> bool:
        limit = self._options.max_active_jobs
        return 0 < limit <= self._styles.count(besides=name) and self._backend.snapshot(name) is None

    def _refuse_silently(self, reason: str, first: Snapshot | None) -> Refuse:
        """Refuse a request whose task_id is that of another training, the end of which was not told yet:
        told to the backend, this would be taken for it."""
        self._log.warning("message refused, and the backend not told", reason=redact(reason))
        if first:
            text = f"Another request with the same task_id was refused: {reason}."
            self._backend.record_event(first.job, "TaskIdReused", text, warning=True)
        return Refuse(reason)

    def _refuse(self, reason: str, sender: Sender) -> Refuse:
        self._log.warning(
            "message refused", style=sender.style_id, task=sender.task_id, reason=redact(reason)
        )
        url = sender.webhook_url
        if url is None or self._allowed_hosts.refusal(url):
            url = report.default_url(self._options.backend_url, sender.style_id)
        if url is None or sender.style_id is None:
            return Refuse(reason)
        failure = TrainingFailure(
            failure_code=FailureCode.INVALID_REQUEST,
            failure_reason=f"The training request was refused: {reason}. Correct it and send it again.",
        )
        payload = report.failed(sender.style_id, sender.task_id, failure)
        # A task_id may hold what no header may.
        told = f"{sender.style_id}\0{sender.task_id}\0{reason}"
        refusal = hashlib.sha256(told.encode(errors="replace"))
        delivery_id = f"msg_{refusal.hexdigest()[:32]}_refused"
        return Refuse(reason, json.dumps({"url": url, "payload": payload, "id": delivery_id}).encode())


def _sender(request: TrainingRequest) -> Sender:
    return Sender(request.style_id, request.task_id, request.webhook_url)
