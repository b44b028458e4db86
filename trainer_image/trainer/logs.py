"""Readable log lines on stderr and in training.log, with every URL redacted."""

import contextlib
import logging
import sys
from pathlib import Path
from typing import Final

from job_contract.redaction import redact

LOGGER_NAME: Final = "trainer"
_FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"


class _RedactingFormatter(logging.Formatter):
    """Redacts the whole line: a URL may stand in a message, an argument or a traceback."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__(_FORMAT)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        if self._tracebacks or record.exc_info is None:
            return redact(super().format(record))
        # Formatter caches a traceback on the record, where the other handler would find it.
        bare = logging.makeLogRecord(record.__dict__ | {"exc_info": None, "exc_text": None})
        return redact(super().format(bare))


class _LogFile(logging.FileHandler):
    """A log file whose failures, as on a full disk, are said once and end nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._failed = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        # logging's own shows the record as it is, secrets and all, and a traceback for every line.
        if not self._failed:
            self._failed = True
            logging.getLogger(LOGGER_NAME).warning(
                "%s cannot be written (%s); the log goes on without it.", self.baseFilename, sys.exc_info()[1]
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what was not written; that is said already
            super().close()


def start_logging() -> logging.Logger:
    """Send the trainer's log, and other libraries' warnings, to stderr without tracebacks."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler.formatter, _RedactingFormatter):
            _remove(handler)
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(_RedactingFormatter(tracebacks=False))
    logging.getLogger().addHandler(console)
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    return logger


def log_to_file(path: Path) -> logging.Handler:
    """Append the log, with tracebacks, to path as well."""
    handler = _LogFile(path)
    handler.setFormatter(_RedactingFormatter(tracebacks=True))
    logging.getLogger().addHandler(handler)
    return handler


def stop_logging() -> None:
    """Close what start_logging and log_to_file opened."""
    for handler in list(logging.getLogger().handlers):
        if isinstance(handler.formatter, _RedactingFormatter):
            _remove(handler)


def _remove(handler: logging.Handler) -> None:
    logging.getLogger().removeHandler(handler)
    handler.close()
