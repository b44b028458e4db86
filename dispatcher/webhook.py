"""The PATCH over HTTP: one attempt, signed, no redirects, only to allowed hosts. The caller retries."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import requests
import standardwebhooks
from urllib3.exceptions import InvalidHeader, LocationParseError
from urllib3.util.retry import Retry

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.guarded_session import ForbiddenAddressError, guarded_session
from dispatcher.report import Payload
from job_contract.redaction import redact

SOURCE: Final = "training-server"

# Answers that a fixed token, a passing overload or the end of a deployment turns into a success.
_TEMPORARY: Final = {302, 303, 307, 401, 403, 407, 408, 409, 423, 425, 429}


@dataclass(frozen=True)
class Delivered:
    pass


@dataclass(frozen=True)
class TryAgain:
    reason: str
    retry_after: float | None = None
    """Seconds that the receiver asked for."""


@dataclass(frozen=True)
class Refused:
    """For good: the same PATCH will never be accepted."""

    reason: str


Answer = Delivered | TryAgain | Refused


def classify(status: int, retry_after: float | None = None) -> Answer:
    """Say what an HTTP status means for the PATCH. Only 2xx is a success; no redirect is followed."""
    if 200 <= status < 300:
        return Delivered()
    if status in _TEMPORARY or (status >= 500 and status != 501):
        return TryAgain(f"the backend answered {status}", retry_after)
    if 300 <= status < 400:
        return Refused(f"the backend answered {status}, and redirects are not followed; correct the URL")
    return Refused(f"the backend answered {status}")


class Webhook:
    """Sends PATCH requests; safe to use from many threads.

    Args:
        timeout_seconds: for one attempt as a whole, from the connection to the last header of the answer.
        ca_bundle: the CA certificates to check a server's with, instead of the public ones.

    Raises:
        InvalidSettingsError: the CA certificates cannot be used.
    """

    def __init__(
        self,
        allowed_hosts: AllowedHosts,
        token: str | None = None,
        secret: str | None = None,
        timeout_seconds: float = 20.0,
        connections: int = 16,
        ca_bundle: Path | None = None,
    ) -> None:
        self._allowed_hosts = allowed_hosts
        self._seconds = timeout_seconds
        self._headers = {"Content-Type": "application/json", "X-Request-Source": SOURCE}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._signer = standardwebhooks.Webhook(secret) if secret else None
        self._session = guarded_session(allowed_hosts, timeout_seconds, connections, ca_bundle)

    def patch(self, url: str, payload: Payload, delivery_id: str) -> Answer:
        """Make one attempt.

        Args:
            delivery_id: stays the same over the attempts at one delivery, so that the receiver can
                tell a repetition: the `webhook-id` of Standard Webhooks 1.0.
        """
        body = json.dumps(payload, separators=(",", ":"))
        headers = {**self._headers, "webhook-id": delivery_id, **self._signature(delivery_id, body)}
        response = self._request("PATCH", url, headers, body.encode())
        if not isinstance(response, requests.Response):
            return response
        return classify(response.status_code, _retry_after(response.headers.get("Retry-After")))

    def unreachable(self, url: str) -> str | None:
        """Return why nothing answers there, or None: which answer it is does not matter."""
        response = self._request("HEAD", url, {}, None)
        return None if isinstance(response, requests.Response) else response.reason

    def _request(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None
    ) -> requests.Response | TryAgain | Refused:
        refusal = self._allowed_hosts.refusal(url)
        if refusal:
            return Refused(f"webhook_url {refusal}")
        try:
            with self._session.request(
                method,
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                stream=True,  # the body of the answer is not wanted, however long it is
            ) as response:
                return response
        except ForbiddenAddressError as error:
            return Refused(str(error))
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            LocationParseError,
            UnicodeError,
        ) as error:
            return Refused(f"webhook_url cannot be used: {redact(str(error))}")
        except requests.ReadTimeout:
            return TryAgain(f"the backend did not answer in full within {self._seconds:g} seconds")
        except requests.RequestException as error:
            return TryAgain(f"the backend cannot be reached: {redact(root_cause(error))}")

    def _signature(self, delivery_id: str, body: str) -> dict[str, str]:
        if self._signer is None:
            return {}
        now = datetime.fromtimestamp(int(time.time()), UTC)
        return {
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._signer.sign(msg_id=delivery_id, timestamp=now, data=body),
        }


def _retry_after(header: str | None) -> float | None:
    """Read seconds or a date; urllib3 gives a receiver that asks for a year six hours."""
    try:
        return Retry().parse_retry_after(header) if header else None
    except (InvalidHeader, ValueError, OverflowError):
        return None


def root_cause(error: BaseException) -> str:
    """Return what an error of requests comes down to, without the names of its layers.

    It may quote what the other side sent in place of an answer, of which 500 characters are enough.
    """
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of them is there
    return str(error)[:500] or type(error).__name__
