"""The PATCH over HTTP: one attempt, signed, no redirects, only to allowed hosts. The caller retries."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import requests
import standardwebhooks
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import InvalidHeader, LocationParseError
from urllib3.poolmanager import PoolManager
from urllib3.util.retry import Retry

from dispatcher.allowed_hosts import AllowedHosts
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
    """Sends PATCH requests; safe to use from many threads."""

    def __init__(
        self,
        allowed_hosts: AllowedHosts,
        token: str | None = None,
        secret: str | None = None,
        timeout_seconds: float = 20.0,
        connections: int = 16,
    ) -> None:
        self._allowed_hosts = allowed_hosts
        self._timeout = (min(5.0, timeout_seconds), timeout_seconds)
        self._headers = {"Content-Type": "application/json", "X-Request-Source": SOURCE}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._signer = standardwebhooks.Webhook(secret) if secret else None
        self._session = requests.Session()
        self._session.trust_env = False  # a .netrc would replace the bearer token
        adapter = _GuardedAdapter(allowed_hosts, pool_maxsize=connections, max_retries=0)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def patch(self, url: str, payload: Payload, delivery_id: str) -> Answer:
        """Make one attempt.

        Args:
            delivery_id: stays the same over the attempts at one delivery, so that the receiver can
                tell a repetition: the `webhook-id` of Standard Webhooks 1.0.
        """
        refusal = self._allowed_hosts.refusal(url)
        if refusal:
            return Refused(f"webhook_url {refusal}")
        body = json.dumps(payload, separators=(",", ":"))
        try:
            response = self._session.patch(
                url,
                data=body.encode(),
                headers={**self._headers, "webhook-id": delivery_id, **self._signature(delivery_id, body)},
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,  # the body of the answer is not wanted, however long it is
            )
            with response:
                return classify(response.status_code, _retry_after(response.headers.get("Retry-After")))
        except _ForbiddenAddressError as error:
            return Refused(str(error))
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            LocationParseError,
            UnicodeError,
        ) as error:
            return Refused(f"webhook_url cannot be used: {redact(str(error))}")
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
    """Return what an error of requests comes down to, without the names of its layers."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]  # one of them is there
    return str(error) or type(error).__name__


class _ForbiddenAddressError(Exception):
    pass


class _GuardedAdapter(HTTPAdapter):
    """Looks at the address that was really connected to, before a byte is sent."""

    def __init__(self, allowed_hosts: AllowedHosts, **options: Any) -> None:
        self._allowed_hosts = allowed_hosts
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = _guarded_pools(self._allowed_hosts.address_refusal)


def _guarded_pools(refusal: Callable[[str, int, str], str | None]) -> dict[str, Any]:
    def check(connection: HTTPConnection, sock: Any) -> Any:
        reason = refusal(connection.host, connection.port or 0, sock.getpeername()[0])
        if reason:
            sock.close()
            raise _ForbiddenAddressError(reason)
        return sock

    class GuardedHTTP(HTTPConnection):
        def _new_conn(self) -> Any:
            return check(self, super()._new_conn())

    class GuardedHTTPS(HTTPSConnection):
        def _new_conn(self) -> Any:
            return check(self, super()._new_conn())

    class HTTPPool(HTTPConnectionPool):
        ConnectionCls = GuardedHTTP

    class HTTPSPool(HTTPSConnectionPool):
        ConnectionCls = GuardedHTTPS

    return {"http": HTTPPool, "https": HTTPSPool}
