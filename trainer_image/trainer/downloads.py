"""Fetch pictures from S3, the web and the local disk, eight at a time."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.errors import DownloadError, InterruptedTrainingError, InvalidImageError, StorageError
from trainer.images import PictureLimits, all_refusals, picture_name, too_large, unreadable
from trainer.storage import ObjectStorage
from trainer.web import BusyHostError, read_url

_PARALLEL_DOWNLOADS: Final = 8
_STOP_POLL_SECONDS: Final = 0.2
_FILE_NAME: Final = "{:04d}"
_FILE_NAMES: Final = "[0-9]" * 4


@dataclass(frozen=True)
class DownloadPolicy:
    """How long one picture is waited for."""

    attempts: int = 4
    first_delay_seconds: float = 0.5
    """Before the second attempt; doubled, with jitter, before each further one."""
    max_delay_seconds: float = 30.0
    """The longest delay that a host's Retry-After is granted."""
    max_seconds: float = 300.0
    """For all attempts, so that a host that sends a byte now and then does not hold the GPU."""


def fetch_images(
    paths: Sequence[str],
    into: Path,
    storage: ObjectStorage,
    stop: threading.Event,
    limits: PictureLimits | None = None,
    policy: DownloadPolicy | None = None,
) -> list[Path | InvalidImageError]:
    """Download the s3:// and http(s):// ones of paths into a folder, eight at a time; local ones stay.

    Returns, in the order of paths, a file for each, or why there is none: it does not exist, may not be read
    or is too large. Nothing is decoded yet.

    Raises:
        InvalidImageError: one of the errors below, and before it some had no file; all such are named.
        DownloadError: a host or S3 doesn't answer, after several attempts.
        ConfigurationError: S3 credentials or endpoint are missing or refused.
        StorageError: the folder can't be written.
        InterruptedTrainingError: stop was set meanwhile.
    """
    ended = threading.Event()
    download = _Download(limits or PictureLimits(), policy or DownloadPolicy(), ended)

    def fetch(number: int, path: str) -> Path | InvalidImageError:
        scheme = path.partition("://")[0].lower()
        try:
            if scheme not in ("s3", "http", "https"):
                return _local(path)
            read = storage.read if scheme == "s3" else read_url
            return download(lambda: read(path), into / _FILE_NAME.format(number), picture_name(path))
        except InvalidImageError as error:
            return error

    try:
        into.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(error) from error
    executor = ThreadPoolExecutor(_PARALLEL_DOWNLOADS, thread_name_prefix="download")
    try:
        futures = [executor.submit(fetch, number, path) for number, path in enumerate(paths)]
        _wait_for_all(futures, stop, download.check_deadlines)
    finally:
        # Neither SIGTERM, which raises here, nor an error waits for the downloads that still run.
        ended.set()
        executor.shutdown(wait=False, cancel_futures=True)
    return [future.result() for future in futures]


def remove_downloads(folder: Path) -> None:
    """Remove what fetch_images put into folder, and the folder unless there is something else in it."""
    with suppress(OSError):  # it may be missing; and files in the way do no harm, but for their space
        for file in folder.glob(_FILE_NAMES):
            file.unlink(missing_ok=True)
        folder.rmdir()


def _wait_for_all(
    futures: list[Future[Path | InvalidImageError]],
    stop: threading.Event,
    check_deadlines: Callable[[], None],
) -> None:
    """Return when all are done, or raise the first error: a host that is down isn't asked a hundred times."""
    pending, errors = set(futures), list[BaseException]()
    while pending and not errors:
        if stop.is_set():
            raise _interrupted()
        check_deadlines()
        _, pending = wait(pending, timeout=_STOP_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        errors = [error for future in futures if future.done() and (error := future.exception())]
    if errors:
        results = [future.result() for future in futures if future.done() and not future.exception()]
        refusals = [result for result in results if isinstance(result, InvalidImageError)]
        raise all_refusals(refusals) if refusals else errors[0]


def _local(path: str) -> Path:
    try:
        exists = Path(path).is_file()
    except OSError as error:
        raise unreadable(picture_name(path), error) from error
    if not exists:
        raise InvalidImageError(f"{picture_name(path)} is not a file where the trainer runs; check the path")
    return Path(path)


class _Download:
    """Copies one source into a file; when that fails, does it over from the start."""

    def __init__(self, limits: PictureLimits, policy: DownloadPolicy, ended: threading.Event) -> None:
        self._limits = limits
        self._policy = policy
        self._ended = ended
        """Set when nobody waits for the result any more."""
        self._running: dict[Path, tuple[str, float]] = {}
        """Name and deadline of what is being fetched, by its file."""

    def __call__(self, open_source: Callable[[], Iterator[bytes]], to: Path, name: str) -> Path:
        self._running[to] = name, time.monotonic() + self._policy.max_seconds
        try:
            for attempt in range(1, self._policy.attempts + 1):
                try:
                    self._copy(open_source(), to, name)
                except DownloadError as error:
                    if attempt == self._policy.attempts:
                        raise
                    self._ended.wait(self._delay(attempt, error))
                else:
                    break
        finally:
            del self._running[to]
        return to

    def check_deadlines(self) -> None:
        """Raise DownloadError when a source takes too long.

        Called from outside of the downloads' threads: a host that drips bytes, of a header even, can hold
        those inside one read for hours.
        """
        for name, deadline in list(self._running.values()):
            if time.monotonic() > deadline:
                raise DownloadError(f"{name} took longer than {self._policy.max_seconds:g} s; check its host")

    def _delay(self, attempt: int, error: DownloadError) -> float:
        """Return the seconds to wait after a failed attempt, counted from 1."""
        delay = self._policy.first_delay_seconds * 2.0 ** (attempt - 1) * random.uniform(1.0, 1.5)  # noqa: S311
        if isinstance(error, BusyHostError):
            delay = max(delay, error.retry_after_seconds)
        return min(delay, self._policy.max_delay_seconds)

    def _copy(self, chunks: Iterator[bytes], to: Path, name: str) -> None:
        """Write chunks to a file, counting: a host's Content-Length may be missing or a lie."""
        size = 0
        try:
            with to.open("wb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if self._ended.is_set():
                        raise _interrupted()
                    if size > self._limits.max_bytes:
                        raise InvalidImageError(too_large(name, self._limits))
                    file.write(chunk)
        except OSError as error:
            raise _not_writable(error) from error


def _interrupted() -> InterruptedTrainingError:
    return InterruptedTrainingError("The training was interrupted while it downloaded its pictures")


def _not_writable(error: OSError) -> StorageError:
    return StorageError(
        f"The downloaded pictures cannot be written ({error.strerror}); check the models volume and its space"
    )
