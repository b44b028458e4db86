"""Faults that the API server is told to make: what to answer, to which requests, how often."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """Spoils the next `times` requests that match; a verb, resource or name of None matches every one.

    Fault(503, verb="create", resource="jobs")
    Fault(429, headers={"Retry-After": "1"})          Fault(500, body=b"<html>no JSON</html>")
    Fault(reset=True)                                 the connection is cut, nothing was done
    Fault(reset=True, after=True)                     ... after the request took effect: it committed
    Fault(hang=True), Fault(hang=True, after=True)    no answer until release_hangs() or stop()
    Fault(500, after=True)                            took effect, answers 500
    Fault(hang=True, containing=b"finalizers")        only where the body holds this text
    """

    status: int | None = None
    verb: str | None = None
    """get, list, watch, create, update, patch, delete, deletecollection."""
    resource: str | None = None
    """Plural, with its subresource: jobs, jobs/status, pods/log, events, leases."""
    name: str | None = None
    containing: bytes = b""
    times: int = 1
    after: bool = False
    hang: bool = False
    reset: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    """Instead of a Status object; sent as text/plain."""
    hits: int = 0
    """How often it struck."""


class FaultQueue:
    """The first fault in the queue that matches a request strikes; those used up are dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self.released = threading.Event()

    def inject(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, verb: str, resource: str, name: str, body: bytes = b"") -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if (
                    fault.verb in (None, verb)
                    and fault.resource in (None, resource)
                    and fault.name in (None, name)
                    and fault.containing in body
                ):
                    fault.hits += 1
                    if fault.hits >= fault.times:
                        self._faults.remove(fault)
                    return fault
            return None

    def release_hangs(self) -> None:
        """End the requests that hang: their connections are cut."""
        self.released.set()
        self.released = threading.Event()
