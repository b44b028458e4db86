"""The probes: a cluster starts again what is not alive, and sends nothing to what is not ready."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from dispatcher.health import HealthServer
from dispatcher.metrics import Metrics
from dispatcher.queues import Queues
from dispatcher.service import Service, make_backend
from dispatcher.settings import DispatcherSettings
from job_contract.outcome import ExitCode
from tests.dispatcher.cluster import new_job
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import get, wait_until
from tests.parts.api_server import ApiServer
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver


def test_probes_follow_what_they_are_asked_and_anything_else_is_404() -> None:
    state = {"alive": True, "ready": False}
    server = HealthServer(free_port(), lambda: state["alive"], lambda: state["ready"], Metrics().expose)
    try:
        assert get(server.port, "/healthz")[0] == 200
        assert get(server.port, "/readyz")[0] == 503
        state.update(alive=False, ready=True)
        assert get(server.port, "/healthz")[0] == 503
        assert get(server.port, "/readyz")[0] == 200
        assert get(server.port, "/secrets")[0] == 404
    finally:
        server.close()
    assert get(server.port, "/healthz")[0] == 0


def _has(address: str) -> bool:
    """Whether the machine has an address."""
    try:
        socket.create_server((address, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not _has("::1"), reason="the machine has no IPv6")
def test_probes_are_answered_over_ipv6_too() -> None:
    """In a cluster without IPv4 every probe failed, and the pod was started again and again."""
    server = HealthServer(free_port(), lambda: True, lambda: True, Metrics().expose)
    try:
        for host in ("[::1]", "127.0.0.1"):
            with urllib.request.urlopen(f"http://{host}:{server.port}/healthz", timeout=5) as response:
                assert response.status == 200
    finally:
        server.close()


def test_a_dispatcher_without_its_broker_is_alive_but_not_ready(
    tmp_path: Path, queues: Queues, api_server: ApiServer, receiver: Receiver
) -> None:
    """A restart mends nothing there, and would only cost the statuses that it relays."""
    api_server.put(new_job(receiver))
    port = free_port()
    with Dispatcher(
        tmp_path,
        f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F",
        queues,
        receiver,
        JOB_BACKEND="kubernetes",
        KUBECONFIG=str(api_server.kubeconfig(tmp_path / "kubeconfig")),
        HEALTH_PORT=str(port),
    ) as dispatcher:
        wait_until(lambda: get(port, "/healthz")[0] == 200)
        wait_until(lambda: get(port, "/metrics")[1].count('lora_trainer_jobs{phase="waiting"} 1'))
        assert get(port, "/readyz")[0] == 503
        assert dispatcher.stop() == 0


def test_4_a_dispatcher_that_is_blind_for_too_long_fails_its_liveness_and_recovers(
    api_server: ApiServer,
    queues: Queues,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that stays healthy while its watch is dead is never restarted."""
    monkeypatch.setattr("dispatcher.service._STALE_SECONDS", 1.0)
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    port, stop = free_port(), threading.Event()
    settings = DispatcherSettings(
        amqp_url=SecretStr(f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F"),
        queue=queues.work,
        backend_url=receiver.url,
        job_backend="kubernetes",
        health_port=port,
    )
    api_server.bookmark_interval = 0.2
    service = threading.Thread(target=Service(settings, *make_backend(settings)).run, args=(stop,))
    service.start()
    try:
        wait_until(lambda: get(port, "/healthz")[0] == 200)
        api_server.stop()
        wait_until(lambda: get(port, "/healthz")[0] == 503)
        api_server.start()
        wait_until(lambda: get(port, "/healthz")[0] == 200)
    finally:
        stop.set()
        service.join(30)
    assert not service.is_alive()


def test_a_health_port_that_is_taken_is_named(
    make_dispatcher: Callable[..., Dispatcher], api_server: ApiServer
) -> None:
    ended = make_dispatcher(HEALTH_PORT=str(api_server.port)).command("run")
    assert ended.returncode == 69
    assert f"HEALTH_PORT {api_server.port}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dispatcher_that_takes_no_more_requests_ends_and_says_that_it_failed(
    api_server: ApiServer,
    queues: Queues,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit code 0 would look as if it had been asked to stop."""

    def fail(*_arguments: object, **_options: object) -> float:
        raise ValueError("a fault in the part that connects again")

    monkeypatch.setattr("dispatcher.broker.backoff_seconds", fail)
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    settings = DispatcherSettings(
        amqp_url=SecretStr(f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F"),
        queue=queues.work,
        backend_url=receiver.url,
        job_backend="kubernetes",
        health_port=0,
    )
    assert Service(settings, *make_backend(settings)).run(threading.Event()) == ExitCode.UNAVAILABLE
