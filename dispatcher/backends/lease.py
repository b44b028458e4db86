"""Which of several dispatchers relays: a Lease that one of them holds at a time.

The client's own leader election neither stops nor says when its hold becomes doubtful. Here a hold is
good only until the lease would run out by this side's clock, counted from before the request was
sent; who relays asks for as much time as a PATCH may take. So two never relay at once.
"""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import structlog
import urllib3
from kubernetes import client
from kubernetes.client import ApiException

from dispatcher.backends.kubernetes_client import describe, translated, unreachable

_TIMEOUT: Final = (3, 5)


class Lease:
    """Tries to hold a Lease; `is_held` may be called from any thread.

    Args:
        identity: who holds it; no two living processes may share one.
        prepare: called before a hold begins to count; while it raises, none does.
        acquired: called when the hold has begun, and when it was so late renewed that whoever asked for
            some time of it may have been turned away.
        duration_seconds: a lease that was not renewed for so long is anybody's.
    """

    def __init__(
        self,
        api: client.ApiClient,
        namespace: str,
        name: str,
        identity: str,
        prepare: Callable[[], None],
        acquired: Callable[[], None],
        *,
        duration_seconds: int = 45,
        renew_seconds: float = 5.0,
    ) -> None:
        self._leases = client.CoordinationV1Api(api)
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._prepare = prepare
        self._acquired = acquired
        self._duration = duration_seconds
        self._renew_seconds = renew_seconds
        self._held_until = 0.0
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self._log = structlog.get_logger("lease")

    def is_held(self, for_seconds: float = 0.0) -> bool:
        """Whether the lease is held, and still is after for_seconds."""
        return time.monotonic() + for_seconds < self._held_until

    def run(self, stop: threading.Event) -> None:
        """Acquire and renew until stop is set, then let go."""
        while not stop.is_set():
            try:
                self._hold()
            except Exception as error:  # noqa: BLE001 - whatever an API server answers, try again
                self._log.warning("the Lease could not be renewed", error=describe(error))
            stop.wait(self._renew_seconds)
        self._let_go()

    def _hold(self) -> None:
        held_until = self._acquire_or_renew()
        late = time.monotonic() + self._duration - 3 * self._renew_seconds >= self._held_until
        if held_until and late:
            self._prepare()
            # That may take longer than the Lease lasts: what counts is that nobody had it meanwhile.
            held_until = self._acquire_or_renew(acquire=False)
        self._held_until = held_until
        if held_until and late:
            self._log.info("this dispatcher relays now", lease=self._name)
            self._acquired()

    def _acquire_or_renew(self, *, acquire: bool = True) -> float:
        """Return until when the Lease is held, in seconds of the monotonic clock; 0 when another has it."""
        asked_at = time.monotonic()
        try:
            lease = self._leases.read_namespaced_lease(self._name, self._namespace, _request_timeout=_TIMEOUT)
        except ApiException as error:
            if error.status != 404 or not acquire:
                raise
            body = {"metadata": {"name": self._name}, "spec": self._spec(None)}
            self._leases.create_namespaced_lease(self._namespace, body, _request_timeout=_TIMEOUT)
        else:
            if not (self._may_take(lease) if acquire else self._is_ours(lease.spec)):
                return 0.0
            # The resourceVersion in it makes the second of two that try fail with 409.
            lease.spec = self._spec(lease.spec)
            self._leases.replace_namespaced_lease(
                self._name, self._namespace, lease, _request_timeout=_TIMEOUT
            )
        return asked_at + self._duration

    def _may_take(self, lease: Any) -> bool:
        """Another's lease is free once it has stood unchanged for its duration, by our own clock."""
        spec = lease.spec
        if spec is None or not spec.holder_identity or self._is_ours(spec):
            return True
        seen = (spec.holder_identity, str(spec.renew_time))
        if seen != self._seen:
            self._seen, self._seen_at = seen, time.monotonic()
        return time.monotonic() - self._seen_at > (spec.lease_duration_seconds or self._duration)

    def _is_ours(self, spec: Any) -> bool:
        return spec is not None and spec.holder_identity == self._identity

    def _spec(self, old: Any) -> Any:
        now = datetime.now(UTC)
        ours = self._is_ours(old)
        return client.V1LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=self._duration,
            acquire_time=old.acquire_time if ours else now,
            renew_time=now,
            lease_transitions=(old.lease_transitions or 0) + (not ours) if old is not None else 0,
        )

    def _let_go(self) -> None:
        if not self.is_held():
            return
        self._held_until = 0.0
        try:
            lease = self._leases.read_namespaced_lease(self._name, self._namespace, _request_timeout=_TIMEOUT)
            if self._is_ours(lease.spec):
                lease.spec.holder_identity = ""
                self._leases.replace_namespaced_lease(
                    self._name, self._namespace, lease, _request_timeout=_TIMEOUT
                )
        except Exception as error:  # noqa: BLE001 - the end must come, and the Lease ends by itself
            self._log.info("the Lease was not handed back; it runs out by itself", error=describe(error))


def holder_of(api: client.ApiClient, namespace: str, name: str) -> str | None:
    """Return who holds a Lease now, None when nobody does.

    Raises:
        DispatcherError: the API server does not answer, or forbids it.
    """
    try:
        lease = client.CoordinationV1Api(api).read_namespaced_lease(
            name, namespace, _request_timeout=_TIMEOUT
        )
    except ApiException as error:
        if error.status == 404:
            return None
        raise translated(error, f"the Lease {name} could not be read") from error
    except urllib3.exceptions.HTTPError as error:
        raise unreachable(error) from error
    spec = lease.spec
    if not spec or not spec.holder_identity or not spec.renew_time:
        return None
    age = datetime.now(UTC) - spec.renew_time
    return str(spec.holder_identity) if age.total_seconds() < (spec.lease_duration_seconds or 0) else None


def delete_lease(api: client.ApiClient, namespace: str, name: str) -> bool:
    """Delete a Lease whoever holds it, for when no dispatcher is left; False when there is none.

    Raises:
        DispatcherError: the API server does not answer, or forbids it.
    """
    try:
        client.CoordinationV1Api(api).delete_namespaced_lease(name, namespace, _request_timeout=_TIMEOUT)
    except ApiException as error:
        if error.status == 404:
            return False
        raise translated(error, f"the Lease {name} could not be deleted") from error
    except urllib3.exceptions.HTTPError as error:
        raise unreachable(error) from error
    return True
