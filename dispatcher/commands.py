"""The subcommands that do one thing and end: submit, status, redrive, release, check."""

import argparse
import json
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from dispatcher.backends import Backend
from dispatcher.checks import run_checks
from dispatcher.diagnosis import Phase
from dispatcher.errors import RefusedMessageError
from dispatcher.job import job_name
from dispatcher.message import parse_message
from dispatcher.overview import as_table, overview
from dispatcher.queues import Queues, publish, redrive
from dispatcher.service import open_backend
from dispatcher.settings import DispatcherSettings
from dispatcher.teller import finalizers_of, patch_job, without_ours
from job_contract import names
from job_contract.outcome import ExitCode
from job_contract.progress import parse_progress
from job_contract.settings import InvalidSettingsError


def submit(settings: DispatcherSettings, options: argparse.Namespace) -> int:
    """Publish a request, from a file and flags; with --wait, see it through to its end."""
    log = structlog.get_logger("submit")
    message = _read_message(options.file) if options.file else {}
    style = options.style_id
    flags = {
        "style_id": int(style) if style and style.isdigit() and str(int(style)) == style else style,
        "image_paths": options.images,
        "num_epochs": options.epochs,
        "webhook_url": options.webhook_url,
        "trigger_word": options.trigger_word,
        "seed": options.seed,
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
    publish(settings.amqp_url.get_secret_value(), settings.queue, body)
    name = job_name(request.style_id, request.task_id or "")
    log.info("published", style=request.style_id, task=request.task_id, job=name)
    return _wait_for(name, settings) if options.wait else ExitCode.OK


def _read_message(path: Path) -> dict[str, Any]:
    try:
        message = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSettingsError(f"--file {path} cannot be read: {error}") from error
    if not isinstance(message, dict):
        raise InvalidSettingsError(f"--file {path} must hold a JSON object")
    return message


def _wait_for(name: str, settings: DispatcherSettings) -> int:
    """Print what changes of a Job until it has ended."""
    backend = open_backend(settings)
    shown = ""
    while True:
        backend.load()
        snapshot = backend.snapshot(name)
        rows = overview([snapshot], datetime.now(UTC)) if snapshot else []
        line = f"{rows[0].phase} {rows[0].details}".rstrip() if rows else "waiting for the dispatcher"
        if rows and rows[0].phase is Phase.RUNNING and snapshot:
            progress = parse_progress(backend.log_tail(snapshot.pods[-1]["metadata"]["name"], lines=20))
            if progress:
                line = f"running, epoch {progress.current_epoch}/{progress.total_epochs}"
        if line != shown:
            _print(line)
            shown = line
        if rows and rows[0].phase in (Phase.COMPLETED, Phase.FAILED):
            return ExitCode.OK if rows[0].phase is Phase.COMPLETED else ExitCode.SOFTWARE
        time.sleep(1)


def status(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    """Print a table of the trainings."""
    backend = open_backend(settings)
    backend.load()
    snapshots = [snapshot for name in backend.names() if (snapshot := backend.snapshot(name))]
    _print(as_table(overview(snapshots, datetime.now(UTC))) if snapshots else "There are no trainings.")
    return ExitCode.OK


def put_back(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    """Put the dead letters back to the queue."""
    moved = redrive(settings.amqp_url.get_secret_value(), Queues(settings.queue))
    _print(f"{moved} dead letters put back to {settings.queue}")
    return ExitCode.OK


def release(settings: DispatcherSettings, options: argparse.Namespace) -> int:
    """Remove the finalizer from Jobs, for when no dispatcher will come back to do it."""
    backend = open_backend(settings)
    backend.load()
    chosen = options.jobs or backend.names()
    released = sum(_release(name, backend) for name in chosen)
    _print(f"{released} Jobs released")
    return ExitCode.OK


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
