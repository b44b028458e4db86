"""`python -m dispatcher check`: is all there that the dispatcher needs? One line each."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import requests
from pika.exceptions import AMQPError

from dispatcher.errors import DispatcherError
from dispatcher.job import load_template
from dispatcher.queues import Queues, connect, error_text
from dispatcher.settings import DispatcherSettings
from job_contract.redaction import redact


@dataclass(frozen=True)
class Check:
    subject: str
    problem: str | None
    """What is wrong and what to do, or None."""

    def __str__(self) -> str:
        return f"FAIL  {self.subject}: {self.problem}" if self.problem else f"ok    {self.subject}"


def run_checks(settings: DispatcherSettings) -> Iterator[Check]:
    """Make the checks one after the other; none stops the next."""
    yield _broker(settings)
    yield _template(settings)
    yield _backend(settings)
    if settings.job_backend == "kubernetes":
        yield from _cluster(settings)
    else:
        yield _folder(settings)


def _broker(settings: DispatcherSettings) -> Check:
    queues = Queues(settings.queue)
    subject = f"RabbitMQ, queues {queues.work} and {queues.dead}"
    try:
        connection = connect(settings.amqp_url.get_secret_value())
        try:
            queues.declare(connection.channel())
        finally:
            connection.close()
    except (DispatcherError, AMQPError) as error:
        return Check(subject, error_text(error))
    return Check(subject, None)


def _template(settings: DispatcherSettings) -> Check:
    try:
        load_template(settings.job_template)
    except (OSError, ValueError) as error:
        return Check("Job template", str(error))
    return Check("Job template", None)


def _backend(settings: DispatcherSettings) -> Check:
    if not settings.backend_url:
        return Check("backend: BACKEND_URL is not set, each message must name a webhook_url", None)
    subject = f"backend {redact(settings.backend_url)} answers"
    try:
        requests.head(settings.backend_url, timeout=10, allow_redirects=False)
    except requests.RequestException as error:
        return Check(subject, redact(str(error)))
    return Check(subject, None)


def _cluster(settings: DispatcherSettings) -> Iterator[Check]:
    from dispatcher.backends.kubernetes_access import missing_permissions
    from dispatcher.backends.kubernetes_client import load_client

    subject = f"Kubernetes API, namespace {settings.namespace}"
    try:
        api = load_client(connections=1)
        missing = missing_permissions(api, settings.namespace, lease=bool(settings.lease_name))
    except DispatcherError as error:
        yield Check(subject, str(error))
        return
    yield Check(subject, None)
    problem = f"the service account may not {', '.join(missing)}; add it to its Role" if missing else None
    yield Check("RBAC", problem)


def _folder(settings: DispatcherSettings) -> Check:
    folder = settings.models_dir.expanduser()
    parent = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    problem = None if os.access(parent, os.W_OK) else "cannot be written; set MODELS_DIR to a folder of yours"
    return Check(f"models folder {folder}", problem)
