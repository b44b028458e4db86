"""Readable log lines on stderr and in training.log, with every URL redacted."""

import contextlib
import logging
import re
import sys
from pathlib import Path
from typing import Any, Final

from job_contract.redaction import redact

LOGGER_NAME: Final = "trainer"
_FORMAT: Final = "%(asctime)s %(levelname)-7s %(message)s"

_UNSEEN: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a file's name may hold, and a line may not: what moves a terminal's cursor or colours it, what turns
the direction of the text after it, and what UTF-8 cannot hold."""


def fit_for_log(text: str) -> str:
    """Return text of ours without secrets, and with escapes, as \\x1b, for what nobody could see."""
    return _UNSEEN.sub(lambda one: one[0].encode("unicode_escape").decode(), redact(text))


def redact_foreign(text: str) -> str:
    """Return a library's text with the rest of each line dropped from a ? on that may begin a query.

    It may hold a request's URL as it came, and a query with spaces and quotes in it ends nobody knows where.
    """
    return fit_for_log("\n".join(map(_without_query, text.split("\n"))))


def _without_query(line: str) -> str:
    address, _, query = line.partition("?")
    return f"{address}?***" if query and "/" in address else line


def brief(error: BaseException, characters: int = 300) -> str:
    """Return what a library's error says, fit for a log and for a part of one sentence."""
    return redact_foreign(" ".join(str(error).split()))[:characters]


class _RedactingFormatter(logging.Formatter):
    """Redacts the whole line: a URL may stand in a message, an argument or a traceback."""

    def __init__(self, *, tracebacks: bool) -> None:
        super().__init__(_FORMAT)
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        # Formatter caches a traceback on the record, where the other handler would find it.
        change = {"exc_text": None} if self._tracebacks else {"exc_text": None, "exc_info": None}
        return fit_for_log(super().format(logging.makeLogRecord(record.__dict__ | change)))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        line = super().formatMessage(record)
        return line if record.name.split(".")[0] == LOGGER_NAME else redact_foreign(line)

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        return redact_foreign(super().formatException(ei))


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
