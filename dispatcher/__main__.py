"""`python -m dispatcher COMMAND`: settings come from the environment, errors are one sentence."""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import structlog

import dispatcher.commands
from dispatcher.errors import DispatcherError
from dispatcher.logs import configure_logs
from dispatcher.service import Service, make_backend
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
    parser = argparse.ArgumentParser(
        prog="python -m dispatcher",
        description="Turn requests on RabbitMQ into trainings, and tell the backend how they go. "
        "Settings are environment variables: see dispatcher/settings.py.",
    )
    parser.set_defaults(command=_run)  # `python -m dispatcher` alone runs it
    commands = parser.add_subparsers(metavar="COMMAND")

    run = commands.add_parser("run", help="consume requests, run them as Jobs and relay their statuses")
    run.set_defaults(command=_run)

    submit = commands.add_parser("submit", help="publish a request")
    submit.add_argument("--file", type=Path, help="a JSON message; flags given too win over it")
    submit.add_argument("--style-id", help="an integer, or 1-64 of A-Za-z0-9_-")
    submit.add_argument("--images", nargs="+", metavar="URL_OR_PATH", help="s3://, http(s):// or paths")
    submit.add_argument("--epochs", type=int, help="passes over the images")
    submit.add_argument("--webhook-url", help="the whole URL to PATCH")
    submit.add_argument("--captions", nargs="+", metavar="TEXT", help="one for each image, in their order")
    submit.add_argument("--trigger-word", metavar="WORD", help="put before every caption")
    submit.add_argument("--seed", type=int)
    submit.add_argument("--learning-rate", type=float, metavar="RATE")
    submit.add_argument("--batch-size", type=int, metavar="N")
    submit.add_argument("--task-id", help="the request's identity; a new one by default")
    submit.add_argument("--wait", action="store_true", help="follow the training to its end")
    submit.set_defaults(command=dispatcher.commands.submit)

    release = commands.add_parser("release", help="remove the finalizers that hold Jobs")
    release.add_argument("jobs", nargs="*", metavar="JOB", help="all Jobs of this instance by default")
    release.add_argument(
        "--lease",
        action="store_true",
        help="delete the Lease LEASE_NAME too: for after the last dispatcher of this instance has ended",
    )
    release.set_defaults(command=dispatcher.commands.release)

    for name, command, text in (
        ("status", dispatcher.commands.status, "print a table of the trainings"),
        ("redrive", dispatcher.commands.put_back, "put the dead letters back to the queue"),
        ("check", dispatcher.commands.check, "check broker, cluster, permissions and backend"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=command)
    return parser


def _run(settings: DispatcherSettings, _options: argparse.Namespace) -> int:
    if not settings.backend_url and not settings.webhook_allowed_hosts:
        raise InvalidSettingsError("set BACKEND_URL or WEBHOOK_ALLOWED_HOSTS, or no status can be reported")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread: the handler interrupts the main thread, which may hold the lock of the event just then.
        signal.signal(number, lambda _number, _frame: threading.Thread(target=stop.set).start())
    log = structlog.get_logger("dispatcher")
    service = Service(settings, *make_backend(settings))
    log.info("starting", job_backend=settings.job_backend, queue=settings.queue)
    code = service.run(stop)
    log.info("stopped")
    logging.shutdown()
    # A thread that waits for an answer would hold up the end, and what it does is done again at the start.
    os._exit(code)


def _secrets(settings: DispatcherSettings) -> list[str]:
    secrets = [settings.backend_token, settings.webhook_secret]
    password = urlsplit(settings.amqp_url.get_secret_value()).password
    return [secret.get_secret_value() for secret in secrets if secret] + ([password] if password else [])


if __name__ == "__main__":
    sys.exit(main())
