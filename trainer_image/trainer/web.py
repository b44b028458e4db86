"""Reading http(s) URLs: the one module of the trainer that imports requests."""

from collections.abc import Iterator
from typing import Final

import requests
import urllib3.exceptions
from urllib3.util.retry import Retry

from trainer.errors import DownloadError, InvalidImageError
from trainer.images import picture_name

_CHUNK_BYTES: Final = 1 << 16
_TIMEOUTS_SECONDS: Final = (5, 10)
"""To connect, and between two bytes; short, because SIGTERM has to be noticed within 20 s."""
_MAX_REDIRECTS: Final = 5
_PASSING: Final = {408, 425, 429}
"""4xx that another try may not get: timeout, too early, too many requests."""
_REASON_CHARACTERS: Final = 60


class BusyHostError(DownloadError):
    """The host asks to be left alone for retry_after_seconds."""

    def __init__(self, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


def read_url(url: str) -> Iterator[bytes]:
    """Yield the content of url in chunks, each as soon as it is there; up to 5 redirects are followed.

    Raises:
        InvalidImageError: the host says that there is nothing to get; another try can't help.
        BusyHostError: the host says when to come again.
        DownloadError: the host doesn't answer, fails, or breaks off.
    """
    shown = picture_name(url)
    try:
        with requests.Session() as session:
            session.max_redirects = _MAX_REDIRECTS
            session.hooks["response"].append(_close_redirect)
            # Pictures are compressed already. Some hosts refuse the agent that requests names.
            headers = {"Accept-Encoding": "identity", "User-Agent": "lora-trainer"}
            with session.get(url, stream=True, timeout=_TIMEOUTS_SECONDS, headers=headers) as response:
                _check_status(response, shown)
                # read1 doesn't wait for a full chunk, so a slow host can't hold the caller up. A body that
                # is shorter than its Content-Length is an error of urllib3's.
                while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
                    yield chunk
    except requests.TooManyRedirects as error:
        raise InvalidImageError(
            f"{shown} redirects more than {_MAX_REDIRECTS} times; check the link"
        ) from error
    except requests.exceptions.InvalidHeader as error:  # a ValueError, too, but no fault of the URL
        raise DownloadError(f"{shown} is answered with an HTTP header that contradicts itself") from error
    except ValueError as error:
        # A URL that requests, urllib3 or idna cannot read, or one that redirects to ftp:// or file://.
        raise InvalidImageError(f"{shown} is, or leads to, no valid http(s) URL; check the link") from error
    except (urllib3.exceptions.ProtocolError, urllib3.exceptions.DecodeError) as error:
        damaged = isinstance(error, urllib3.exceptions.DecodeError)
        reason = "its compression is damaged" if damaged else "the connection broke off before its end"
        raise DownloadError(
            f"{shown} could not be downloaded ({reason}); check that its link gives the whole picture"
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise DownloadError(
            f"{shown} could not be downloaded ({_reason(error)}); check that its host is up and reachable"
        ) from error


def _close_redirect(response: requests.Response, **_: object) -> None:
    """Leave a redirect's body unread: requests would read all of it into memory, however long it is."""
    if response.is_redirect:
        response.close()


def _check_status(response: requests.Response, shown: str) -> None:
    status = response.status_code
    if status < 300:
        return
    # The host may put anything there, and a sentence has to stay one.
    reason = "".join(filter(str.isprintable, response.reason or ""))[:_REASON_CHARACTERS]
    answer = f"{shown} answers {status} {reason}".rstrip()
    if status >= 500 or status in _PASSING:
        raise BusyHostError(
            f"{answer}; try again later", _retry_after(response.headers.get("Retry-After", ""))
        )
    raise InvalidImageError(f"{answer}; check that the picture exists and that its link has not expired")


def _retry_after(value: str) -> float:
    """Return the seconds that a Retry-After header asks for; 0 when it is absent or unreadable."""
    try:
        return Retry().parse_retry_after(value)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    """Name what failed: the texts of requests hold the whole URL, query and all."""
    if isinstance(error, requests.Timeout | urllib3.exceptions.TimeoutError):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "TLS failed"
    if isinstance(error, requests.ConnectionError):
        hung_up = error.args and isinstance(error.args[0], urllib3.exceptions.ProtocolError)
        return "it hung up, or answered no HTTP" if hung_up else "no connection"
    return type(error).__name__
