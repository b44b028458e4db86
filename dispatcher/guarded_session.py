"""HTTP connections that are looked at before a byte is sent, and read for no longer than they may take."""

import http.client
import io
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.poolmanager import PoolManager
from urllib3.util.timeout import Timeout

from dispatcher.allowed_hosts import AllowedHosts
from job_contract.settings import InvalidSettingsError


class ForbiddenAddressError(Exception):
    """An allowed host is at an address that no webhook may reach."""


def guarded_session(
    allowed_hosts: AllowedHosts, timeout_seconds: float, connections: int, ca_bundle: Path | None
) -> requests.Session:
    """Return a session that asks `allowed_hosts` about every address that it has connected to.

    Its requests raise ForbiddenAddressError, beside what requests raises.

    Args:
        timeout_seconds: for a request as a whole, from the connection to the last header of its answer.
        connections: how many are kept for each host.
        ca_bundle: a file, or a folder, of CA certificates that count instead of the public ones.

    Raises:
        InvalidSettingsError: the CA certificates cannot be used.
    """
    session = requests.Session()
    # A .netrc would replace the bearer token, and of what is behind a proxy no address can be looked at.
    session.trust_env = False
    if ca_bundle:
        _look_at(ca_bundle)
        session.verify = str(ca_bundle)
    adapter = _GuardedAdapter(allowed_hosts, timeout_seconds, pool_maxsize=connections, max_retries=0)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _look_at(ca_bundle: Path) -> None:
    file, folder = (None, ca_bundle) if ca_bundle.is_dir() else (ca_bundle, None)
    try:
        ssl.create_default_context().load_verify_locations(file, folder)
    except OSError as error:
        raise InvalidSettingsError(f"REQUESTS_CA_BUNDLE {ca_bundle} cannot be used: {error}") from error


class _GuardedAdapter(HTTPAdapter):
    def __init__(self, allowed_hosts: AllowedHosts, timeout_seconds: float, **options: Any) -> None:
        self._pools = _guarded_pools(allowed_hosts, timeout_seconds)
        self._timeout = Timeout(connect=min(5.0, timeout_seconds), total=timeout_seconds)
        super().__init__(**options)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = self._pools

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        return super().send(request, *args, **{**options, "timeout": self._timeout})


def _guarded_pools(allowed_hosts: AllowedHosts, timeout_seconds: float) -> dict[str, Any]:
    class GuardedHTTP(HTTPConnection):
        response_class = _WholeAnswer

        def _new_conn(self) -> socket.socket:
            """Look at the address that was really connected to."""
            began = time.monotonic()
            sock = super()._new_conn()
            refusal = allowed_hosts.address_refusal(self.host, self.port or 0, sock.getpeername()[0])
            if refusal:
                sock.close()
                raise ForbiddenAddressError(refusal)
            if time.monotonic() - began > timeout_seconds:
                # The name's look-up has no limit of its own. By now another may relay.
                sock.close()
                raise TimeoutError(f"connecting took longer than {timeout_seconds:g} seconds")
            return sock

    class GuardedHTTPS(GuardedHTTP, HTTPSConnection):
        pass

    class HTTPPool(HTTPConnectionPool):
        ConnectionCls = GuardedHTTP

    class HTTPSPool(HTTPSConnectionPool):
        ConnectionCls = GuardedHTTPS

    return {"http": HTTPPool, "https": HTTPSPool}


class _WholeAnswer(http.client.HTTPResponse):
    """A final answer, all of which is there within what the socket's timeout allows for a single read."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_UntilDeadline(self.fp.detach(), sock))

    def begin(self) -> None:
        super().begin()
        while 102 <= self.status < 200:  # 102 and 103 come before the answer, as 100 does
            self.headers = None  # type: ignore[assignment]  # else it has begun, and reads no more
            super().begin()


class _UntilDeadline(io.RawIOBase):
    """Gives each read what is left of the time: a sender of single bytes would have all of it each time."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._deadline = time.monotonic() + (sock.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the answer is not whole")
        self._sock.settimeout(remaining)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
