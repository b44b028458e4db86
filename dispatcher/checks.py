"""`python -m dispatcher check`: is all there that the dispatcher needs? One line each."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dispatcher.errors import BrokerUnavailableError, DispatcherError
from dispatcher.job import load_template
from dispatcher.queues import Queues, counts
from dispatcher.service import make_allowed_hosts, make_webhook
from dispatcher.settings import DispatcherSettings
from job_contract.redaction import redact
from job_contract.settings import InvalidSettingsError

_NO_BROKER: Final = "check that it runs, and that AMQP_URL (amqp://user:password@host:5672/) names it"
_BROKER_ADVICE: Final = (
    ("Login was refused", "check the user and the password in AMQP_URL"),
    ("ACCESS_REFUSED", "let its user configure, write and read what begins with the name of QUEUE"),
    ("NOT_ALLOWED", "check the virtual host, the last part of AMQP_URL; %2F is the default one"),
    ("PRECONDITION_FAILED", "delete the queue that was declared otherwise, or set QUEUE to another name"),
)
_NO_BACKEND: Final = "check that it runs, and that BACKEND_URL is right seen from here, with no proxy"
_NO_CA: Final = "set REQUESTS_CA_BUNDLE to a file with the certificate of the backend's CA"
_BACKEND_ADVICE: Final = (("self-signed certificate", _NO_CA), ("issuer certificate", _NO_CA))


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
        yield _folder("models", settings.models_dir, "MODELS_DIR")
        yield _folder("state", settings.local_state_dir, "LOCAL_STATE_DIR")


def _broker(settings: DispatcherSettings) -> Check:
    queues = Queues(settings.queue)
    try:
        found = counts(settings.amqp_url.get_secret_value(), queues)
    except BrokerUnavailableError as error:
        text = str(error)
        advice = next((advice for hint, advice in _BROKER_ADVICE if hint in text), _NO_BROKER)
        return Check("RabbitMQ", f"{text}; {advice}")
    waiting = f"{found.waiting} requests wait in {queues.work} for {found.consumers} dispatchers"
    return Check(f"RabbitMQ: {waiting}, {found.dead} were refused ({queues.dead})", None)


def _template(settings: DispatcherSettings) -> Check:
    try:
        load_template(settings.job_template)
    except InvalidSettingsError as error:
        return Check("Job template", str(error))
    return Check("Job template", None)


def _backend(settings: DispatcherSettings) -> Check:
    if not settings.backend_url:
        return Check("backend: BACKEND_URL is not set, each message must name a webhook_url", None)
    subject = f"backend {redact(settings.backend_url)} answers"
    try:
        problem = make_webhook(settings, make_allowed_hosts(settings)).unreachable(settings.backend_url)
    except InvalidSettingsError as error:
        return Check(subject, str(error))
    advice = next((advice for hint, advice in _BACKEND_ADVICE if hint in (problem or "")), _NO_BACKEND)
    return Check(subject, f"{problem}; {advice}" if problem else None)


def _cluster(settings: DispatcherSettings) -> Iterator[Check]:
    from dispatcher.backends.kubernetes_access import missing_permissions
    from dispatcher.backends.kubernetes_client import load_client

    subject = f"Kubernetes API, namespace {settings.namespace}"
    try:
        api = load_client(connections=1)
        missing = missing_permissions(api, settings.namespace, lease=settings.lease_name)
    except DispatcherError as error:
        yield Check(subject, f"{error}; check KUBECONFIG, or the pod's service account and NetworkPolicy")
        return
    yield Check(subject, None)
    problem = f"the service account may not {', '.join(missing)}; add it to its Role" if missing else None
    yield Check("permissions (RBAC)", problem)
    if settings.lease_name:
        yield _lease(api, settings.namespace, settings.lease_name)


def _lease(api: Any, namespace: str, name: str) -> Check:
    from dispatcher.backends.lease import holder_of

    try:
        holder = holder_of(api, namespace, name)
    except DispatcherError as error:
        return Check(f"Lease {name}", str(error))
    # No fault before the first dispatcher runs, nor for the seconds until a killed one's hold runs out.
    free = "nobody: no training starts and no status is told until a dispatcher that runs takes it"
    return Check(f"Lease {name} is held by {holder or free}", None)


def _folder(what: str, folder: Path, variable: str) -> Check:
    """Look whether a folder can be made, or written when it is there; nothing is made."""
    folder = folder.expanduser()
    there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    problem = None if writable else f"{there} cannot be written; set {variable} to a folder of yours"
    return Check(f"{what} folder {folder}", problem)
