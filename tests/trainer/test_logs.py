"""Log lines say what happened and keep secrets."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.logs import log_to_file, start_logging, stop_logging


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "training.log"
    stop_logging()


def start(log: Path) -> logging.Logger:
    """Begin to log, with the standard error that the test sees."""
    start_logging()
    log_to_file(log)
    return logging.getLogger("trainer.x")


def test_secrets_in_messages_arguments_and_tracebacks_are_redacted(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Requests' exceptions, for one, hold the whole presigned URL."""
    logger = start(log)
    try:
        raise ValueError("GET https://h/a.jpg?X-Amz-Signature=topsecret")
    except ValueError as error:
        logger.error("https://user:topsecret@h/%s", "b?key=topsecret", exc_info=error)
    for text in (capfd.readouterr().err, log.read_text()):
        assert "https://***@h/b?***" in text
        assert "topsecret" not in text


def test_traceback_goes_to_the_file_and_not_to_the_console(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start(log).error("It failed", exc_info=ValueError("why"))
    console = capfd.readouterr().err
    assert "It failed" in console
    assert "why" not in console
    assert "ValueError: why" in log.read_text()


def test_other_libraries_warnings_are_kept_and_their_chatter_is_not(log: Path) -> None:
    logger = start(log)
    logging.getLogger("somelibrary").info("chatter")
    logging.getLogger("somelibrary").warning("careful")
    logger.info("ours")
    text = log.read_text()
    assert "chatter" not in text
    assert "careful" in text
    assert "ours" in text


def test_starting_twice_does_not_say_everything_twice(capfd: pytest.CaptureFixture[str]) -> None:
    start_logging()
    start_logging()
    logging.getLogger("trainer.x").info("once")
    stop_logging()
    assert capfd.readouterr().err.count("once") == 1


def test_full_disk_is_said_once_without_secrets_and_ends_nothing(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """logging's own way is a traceback a line with the bare arguments in it, and an error at the close."""
    log.symlink_to("/dev/full")
    logger = start(log)
    for number in range(3):
        logger.info("%d https://h/a.jpg?key=%s", number, "topsecret")
    stop_logging()
    console = capfd.readouterr().err
    assert console.count("No space left on device") == 1
    assert all(f"{number} https://h/a.jpg?***" in console for number in range(3))
    assert "topsecret" not in console
    assert "Traceback" not in console
