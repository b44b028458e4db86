"""The subcommands that do one thing and end: submit, status, redrive, release, check."""

import argparse
import json
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from dispatcher.backends import Backend
from dispatcher.checks import run_checks
from dispatcher.errors import RefusedMessageError
from dispatcher.follow import follow
from dispatcher.job import job_name
from dispatcher.message import parse_message
from dispatcher.overview import as_table, overview, seen
from dispatcher.queues import Queues, publish, redrive
from dispatcher.refusal_listener import RefusalListener
from dispatcher.service import open_backend
from dispatcher.settings import DispatcherSettings
from dispatcher.teller import finalizers_of, patch_job, without_ours
from job_contract import names
from job_contract.outcome import ExitCode
from job_contract.request import style_id_of
from job_contract.settings import InvalidSettingsError


def submit(settings: DispatcherSettings, options: argparse.Namespace) -> int:
    """Publish a request, from a file and flags; with --wait, see it through to its end."""
    log = structlog.get_logger("submit")
    message = _read_message(options.file) if options.file else {}
    flags = {
        "style_id": style_id_of(options.style_id) if options.style_id else None,
        "image_paths": [_absolute(image) for image in options.images] if options.images else None,
        "num_epochs": options.epochs,
        "webhook_url": options.webhook_url,
        "captions": options.captions,
        "trigger_word": options.trigger_word,
        "seed": options.seed,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        "task_id": options.task_id,
    }
    # What an envelope has in `data` wins over what is beside it, so flags that are to win go there.
    fields = message["data"] if isinstance(message.get("data"), dict) else message
    fields |= {name: value for name, value in flags.items() if value is not None}
    message.setdefault("task_id", str(uuid.uuid4()))
    body = json.dumps(message).encode()
    try:
        request = parse_message(body)
    except RefusedMessageError as error:
        log.error(f"not published: {error}")
        return ExitCode.BAD_DATA
    url = settings.amqp_url.get_secret_value()
    name = job_name(request.style_id, request.task_id or "")
    published = {"style": request.style_id, "task": request.task_id, "job": name}
    if not options.wait:
        publish(url, settings.queue, body)
        log.info("published", **published)
        return ExitCode.OK
    with RefusalListener(url, Queues(settings.queue), body) as refusals:
        publish(url, settings.queue, body)
        log.info("published", **published)
        return follow(name, request, open_backend(settings), refusals, _print)


def _absolute(image: str) -> str:
    """The trainer has another working directory."""
    return image if "://" in image else str(Path(image).expanduser().absolute())


def _read_message(path: Path) -> dict[str, Any]:
    try:
        message = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSettingsError(f"--file {path} cannot be read: {error}") from error
    if not isinstance(message, dict):
        raise InvalidSettingsError(f"--file {path} must hold a JSON object")
    return message


def status(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    """Print a table of the trainings."""
    backend = open_backend(settings)
    backend.load()
    snapshots = [snapshot for name in backend.names() if (snapshot := seen(backend, name))]
    _print(as_table(overview(snapshots, datetime.now(UTC))) if snapshots else "There are no trainings.")
    return ExitCode.OK


def put_back(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    """Put the dead letters back to the queue."""
    moved = redrive(settings.amqp_url.get_secret_value(), Queues(settings.queue))
    _print(f"{moved} dead letters put back to {settings.queue}")
    return ExitCode.OK


def release(settings: DispatcherSettings, options: argparse.Namespace) -> int:
    """Remove the finalizer from Jobs, for when no dispatcher will come back to do it.

    With --lease the Lease goes too, which the last dispatcher of an uninstall may no longer hand back: the
    next install would wait for it to run out. A dispatcher that runs would lose its hold.
    """
    if options.lease and (options.jobs or not settings.lease_name):
        raise InvalidSettingsError("--lease is for all Jobs at once, and needs LEASE_NAME")
    if settings.job_backend == "local":
        _print(
            "Nothing to release: with JOB_BACKEND=local no cluster holds the Jobs. The dispatcher lets go of "
            f"them by itself; to forget them all, stop it and delete {settings.local_state_dir}."
        )
        return ExitCode.OK
    backend = open_backend(settings)
    backend.load()
    chosen = options.jobs or backend.names()
    released = sum(_release(name, backend) for name in chosen)
    _print(f"{released} Jobs released")
    if options.lease:
        _delete_lease(settings)
    return ExitCode.OK


def _delete_lease(settings: DispatcherSettings) -> None:
    from dispatcher.backends.kubernetes_client import load_client
    from dispatcher.backends.lease import delete_lease

    name = settings.lease_name or ""
    deleted = delete_lease(load_client(connections=1), settings.namespace, name)
    _print(f"Lease {name} deleted" if deleted else f"There is no Lease {name}")


def _release(name: str, backend: Backend) -> bool:
    snapshot = backend.snapshot(name)
    if snapshot is None or names.FINALIZER not in finalizers_of(snapshot.job):
        return False
    patch_job(backend, snapshot.job, {"metadata": {"finalizers": without_ours(snapshot.job)}})
    _print(f"{name} released")
    return True


def check(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    """Print one line for each thing that the dispatcher needs."""
    failed = False
    for result in run_checks(settings):
        _print(str(result))
        failed = failed or result.problem is not None
    return ExitCode.UNAVAILABLE if failed else ExitCode.OK


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what a command is asked for goes to standard output
