"""`python -m dispatcher run|submit|redrive`: settings from the environment, one sentence on errors."""

import argparse
import json
import signal
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog

from dispatcher.errors import DispatcherError, RefusedMessageError
from dispatcher.logs import configure_logs
from dispatcher.message import parse_message
from dispatcher.queues import Queues, publish, redrive
from dispatcher.settings import DispatcherSettings
from job_contract.outcome import ExitCode
from job_contract.settings import InvalidSettingsError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = DispatcherSettings.from_environment()
        configure_logs(settings.log_format, _secrets(settings))
        return int(options.command(settings, options))
    except InvalidSettingsError as error:
        print(f"dispatcher: {error}", file=sys.stderr)  # noqa: T201 - logs are not set up yet
        return ExitCode.BAD_CONFIG
    except DispatcherError as error:
        structlog.get_logger("dispatcher").error(str(error))
        return ExitCode.UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dispatcher", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="consume requests, run them as Jobs and relay their statuses")
    run.set_defaults(command=_run)

    submit = commands.add_parser("submit", help="publish a request")
    submit.add_argument("--file", type=Path, help="a JSON message; flags given too win over it")
    submit.add_argument("--style-id", help="an integer, or 1-64 of A-Za-z0-9_-")
    submit.add_argument("--images", nargs="+", metavar="URL_OR_PATH", help="s3://, http(s):// or paths")
    submit.add_argument("--epochs", type=int, help="passes over the images")
    submit.add_argument("--webhook-url", help="the whole URL to PATCH")
    submit.add_argument("--trigger-word")
    submit.add_argument("--seed", type=int)
    submit.add_argument("--task-id", help="the request's identity; a new one by default")
    submit.set_defaults(command=_submit)

    again = commands.add_parser("redrive", help="put the dead letters back to the queue")
    again.set_defaults(command=_redrive)
    return parser


def _run(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    from dispatcher.service import Service, make_backend

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    log = structlog.get_logger("dispatcher")
    try:
        service = Service(settings, make_backend(settings))
    except ValueError as error:
        log.error(str(error))
        return ExitCode.BAD_CONFIG
    log.info("starting", job_backend=settings.job_backend, queue=settings.queue)
    service.run(stop)
    log.info("stopped")
    return ExitCode.OK


def _submit(settings: DispatcherSettings, options: argparse.Namespace) -> int:
    message: dict[str, Any] = json.loads(options.file.read_text()) if options.file else {}
    style = options.style_id
    flags = {
        "style_id": int(style) if style and style.isdigit() else style,
        "image_paths": options.images,
        "num_epochs": options.epochs,
        "webhook_url": options.webhook_url,
        "trigger_word": options.trigger_word,
        "seed": options.seed,
        "task_id": options.task_id,
    }
    message |= {name: value for name, value in flags.items() if value is not None}
    message.setdefault("task_id", str(uuid.uuid4()))
    body = json.dumps(message).encode()
    try:
        request = parse_message(body)
    except RefusedMessageError as error:
        structlog.get_logger("submit").error(f"not published: {error}")
        return ExitCode.BAD_DATA
    publish(settings.amqp_url.get_secret_value(), settings.queue, body)
    structlog.get_logger("submit").info("published", style=request.style_id, task=request.task_id)
    return ExitCode.OK


def _redrive(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    moved = redrive(settings.amqp_url.get_secret_value(), Queues(settings.queue))
    structlog.get_logger("redrive").info("dead letters put back", count=moved, queue=settings.queue)
    return ExitCode.OK


def _secrets(settings: DispatcherSettings) -> list[str]:
    secrets = [settings.backend_token, settings.webhook_secret]
    password = urlsplit(settings.amqp_url.get_secret_value()).password
    return [secret.get_secret_value() for secret in secrets if secret] + ([password] if password else [])


if __name__ == "__main__":
    sys.exit(main())
