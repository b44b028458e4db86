"""The Lease: of several dispatchers one relays, and whatever fails, two never do."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kubernetes import client

from dispatcher.backends.lease import Lease
from dispatcher.backends.lease_identity import lease_identity
from dispatcher.errors import BackendUnavailableError
from dispatcher.service import make_backend
from dispatcher.settings import DispatcherSettings
from tests.dispatcher.process import ROOT, Dispatcher, ends
from tests.dispatcher.support import Amqp, message, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver

DURATION = 2
RENEW = 0.1
SELDOM = 0.3
"""A renewal counts as late after three times this, which a busy machine does not take."""


class Candidate:
    """A Lease in its thread; `turns` counts how often it was told that its turn has come."""

    def __init__(self, api_server: ApiServer, identity: str, renew: float) -> None:
        self.turns = 0
        self.prepared = 0
        self.unprepared = 0
        """How often preparing is to fail."""
        self.while_preparing: Callable[[], object] = lambda: None
        self.lease = Lease(
            api_server.client(),
            api_server.namespace,
            "relay",
            identity,
            self._prepare,
            self._acquired,
            duration_seconds=DURATION,
            renew_seconds=renew,
        )
        self._renew = renew
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self.lease.run, args=(self._stop,))
        self._thread.start()

    def _prepare(self) -> None:
        assert not self.lease.is_held(DURATION - 3 * self._renew), "it counts already"
        if self.unprepared:
            self.unprepared -= 1
            raise BackendUnavailableError("the Jobs could not be listed")
        self.while_preparing()
        self.prepared += 1

    def _acquired(self) -> None:
        assert self.lease.is_held()
        self.turns += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(20)
        assert not self._thread.is_alive()


def take_as(api_server: ApiServer, identity: str) -> None:
    """Take the Lease as a dispatcher does that is killed right after."""
    leases = client.CoordinationV1Api(api_server.client())
    lease = leases.read_namespaced_lease("relay", api_server.namespace)
    lease.spec.holder_identity = identity
    leases.replace_namespaced_lease("relay", api_server.namespace, lease)


@contextmanager
def candidate(api_server: ApiServer, identity: str, renew: float = RENEW) -> Iterator[Candidate]:
    running = Candidate(api_server, identity, renew)
    try:
        yield running
    finally:
        running.stop()


def holder(api_server: ApiServer) -> str:
    lease = api_server.get("leases", "relay")
    return str(lease["spec"].get("holderIdentity") or "") if lease else ""


def test_a_lease_is_handed_over_at_once_when_its_holder_stops(api_server: ApiServer) -> None:
    with candidate(api_server, "a") as first:
        wait_until(first.lease.is_held)
        with candidate(api_server, "b") as second:
            first.stop()
            assert not first.lease.is_held()
            began = time.monotonic()
            wait_until(second.lease.is_held)
            assert time.monotonic() - began < DURATION
            wait_until(lambda: second.turns == 1)
            assert holder(api_server) == "b"


def test_two_never_hold_at_once_whatever_the_api_server_does(api_server: ApiServer) -> None:
    both: list[float] = []
    with candidate(api_server, "a") as first, candidate(api_server, "b") as second:
        faults = [
            Fault(500, resource="leases", times=5),
            Fault(reset=True, resource="leases", times=9),
            Fault(reset=True, after=True, verb="update", resource="leases", times=9),
            Fault(409, verb="update", resource="leases", times=20),
            Fault(500, resource="leases", times=60),
        ]
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if faults and time.monotonic() > end - len(faults):
                api_server.inject(faults.pop())
            # Asked in both orders, so that a hand-over in between is not taken for two.
            if first.lease.is_held() and second.lease.is_held() and first.lease.is_held():
                both.append(time.monotonic())
            time.sleep(0.002)
        api_server.clear_faults()
        wait_until(lambda: first.lease.is_held() or second.lease.is_held())
    assert both == []


def test_a_lease_of_a_holder_that_is_gone_is_taken_over_only_after_it_ran_out(api_server: ApiServer) -> None:
    with candidate(api_server, "b") as second:
        wait_until(second.lease.is_held)
    take_as(api_server, "killed")
    began = time.monotonic()  # before the first look at the Lease, from which on it must stand unchanged
    with candidate(api_server, "a") as first:
        wait_until(first.lease.is_held, DURATION + 5)
        assert time.monotonic() - began > DURATION
        wait_until(lambda: first.turns == 1)


def test_a_hold_ends_by_itself_when_the_api_server_is_gone(api_server: ApiServer) -> None:
    with candidate(api_server, "a") as first:
        wait_until(first.lease.is_held)
        api_server.stop()
        # Who asks for more time than is left is told no, and in the end everybody is.
        wait_until(lambda: not first.lease.is_held(DURATION - 0.5), DURATION)
        wait_until(lambda: not first.lease.is_held(), DURATION + 1)
        turns = first.turns
        api_server.start()
        wait_until(lambda: first.lease.is_held() and first.turns == turns + 1)


def test_a_hold_that_was_renewed_late_looks_at_all_jobs_again(api_server: ApiServer) -> None:
    """Meanwhile Jobs were left alone since the hold was too short for a PATCH, and nothing else comes back
    to them."""
    with candidate(api_server, "a") as first:
        wait_until(lambda: first.turns == 1)
        api_server.inject(Fault(500, resource="leases", times=8))
        wait_until(lambda: not first.lease.is_held(DURATION - 0.6))
        assert first.lease.is_held()
        wait_until(lambda: first.turns == 2, what="its turn is announced again")


def test_no_hold_counts_before_what_was_released_by_others_is_known(api_server: ApiServer) -> None:
    """Who relayed before may have released a Job that the watch does not show yet."""
    with candidate(api_server, "a") as first:
        first.unprepared = 2
        wait_until(lambda: first.lease.is_held() and first.turns)
        assert (first.unprepared, first.prepared, first.turns) == (0, 1, 1)


def test_a_list_that_takes_longer_than_the_lease_lasts_holds_up_no_take_over(api_server: ApiServer) -> None:
    """The hold counted from before the list: it was over when the list came, which was then made again."""
    with candidate(api_server, "b") as second:
        wait_until(second.lease.is_held)
    with candidate(api_server, "a", SELDOM) as first:
        late = threading.Event()
        first.while_preparing = lambda: late.wait(DURATION + 0.5)
        wait_until(lambda: first.turns == 1)
        assert first.prepared == 1
        renewed = api_server.count("update", "leases")
        wait_until(lambda: api_server.count("update", "leases") > renewed + 5)
        assert first.lease.is_held(DURATION / 2)
        assert first.prepared == 1


def test_what_was_listed_while_another_took_the_lease_does_not_count(api_server: ApiServer) -> None:
    """That one may have released a Job since."""
    with candidate(api_server, "b") as second:
        wait_until(second.lease.is_held)
    with candidate(api_server, "a") as first:
        takers = ["c"]

        def lose_it_once() -> None:
            for taker in takers:
                take_as(api_server, taker)
            takers.clear()

        first.while_preparing = lose_it_once
        wait_until(lambda: first.turns == 1)
        assert first.prepared == 2


def test_an_answer_that_is_no_lease_is_got_over(api_server: ApiServer) -> None:
    """A proxy's page once ended the thread, and nobody relayed until the process was started anew."""
    fault = api_server.inject(Fault(200, resource="leases", body=b"<html>Welcome</html>", times=3))
    with candidate(api_server, "a") as first:
        wait_until(first.lease.is_held)
        assert fault.hits == 3


def test_a_healthy_hold_is_announced_once(api_server: ApiServer) -> None:
    with candidate(api_server, "a", SELDOM) as first:
        wait_until(lambda: api_server.count("update", "leases") > 5)
        assert first.turns == 1


def test_a_long_webhook_timeout_leaves_a_lease_that_is_long_enough(
    api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PATCH that may take longer than the lease lasts would mean that nobody ever relays."""
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    # The client reads KUBECONFIG once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    settings = DispatcherSettings(job_backend="kubernetes", lease_name="relay", webhook_timeout_seconds=120)
    _, make_lease = make_backend(settings)
    assert make_lease
    stop = threading.Event()
    lease = make_lease(lambda: None, stop.set)
    lease.run(stop)  # until it is held
    spec = (api_server.get("leases", "relay") or {})["spec"]
    assert spec["leaseDurationSeconds"] > 120 + 5 + 10


def test_two_processes_on_one_host_are_two_holders(tmp_path: Path) -> None:
    """Two pods with hostNetwork share a host name, and both are process 1: each took the other's Lease."""
    assert lease_identity(tmp_path, "relay") != lease_identity(tmp_path, "relay")


def test_a_process_that_was_killed_is_the_same_holder_when_it_is_started_again(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys\n"
        "from dispatcher.backends.lease_identity import lease_identity\n"
        "print(lease_identity(pathlib.Path(sys.argv[1]), 'relay'), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )

    def life() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout

    first = life()
    assert first
    assert life() == first
    assert lease_identity(tmp_path, "another") != first.strip()


def test_where_nothing_can_be_written_each_life_is_a_new_holder(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert lease_identity(nowhere, "relay") != lease_identity(nowhere, "relay")


def test_a_container_that_is_started_again_after_a_crash_goes_on_at_once(
    tmp_path: Path,
    make_dispatcher: Callable[..., Dispatcher],
    amqp: Amqp,
    api_server: ApiServer,
    controller: JobController,
    receiver: Receiver,
) -> None:
    """Until its own Lease had run out nothing would start and nothing be told."""
    controller.run_all()
    with make_dispatcher(
        LEASE_NAME="relay", WEBHOOK_TIMEOUT_SECONDS="100", TMPDIR=str(tmp_path)
    ) as dispatcher:
        amqp.publish(message(1))
        wait_until(lambda: ends(receiver, range(1, 2)) == ["completed"], 20)
        dispatcher.kill()
        dispatcher.start()
        amqp.publish(message(2))
        wait_until(lambda: ends(receiver, range(2, 3)) == ["completed"], 30)
    spec = (api_server.get("leases", "relay") or {})["spec"]
    assert spec["leaseDurationSeconds"] > 100
