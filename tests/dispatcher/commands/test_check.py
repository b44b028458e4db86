"""`check`: one line for each thing that is needed, with what to do where it is missing."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import pika
import pytest
from kubernetes.client import CoordinationV1Api

from dispatcher.__main__ import main
from dispatcher.backends.lease import Lease
from dispatcher.service import make_allowed_hosts, make_webhook
from dispatcher.settings import DispatcherSettings
from dispatcher.webhook import Answer, Delivered, TryAgain
from tests.dispatcher.support import Amqp, message
from tests.parts.api_server import ApiServer
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver
from tests.parts.tls import certificate, tls_in_front_of


def test_check_finds_all_well(cluster: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("ok ") for line in lines)


def test_check_says_how_many_requests_wait_and_were_refused(
    amqp: Amqp, cluster: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    amqp.publish(message(1))
    assert main(["check"]) == 0
    assert f"1 requests wait in {amqp.queues.work} for 0 dispatchers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("guest:guest", "guest:wrong", "the user and the password in AMQP_URL"),
        ("%2F", "nowhere", "check the virtual host"),
        ("127.0.0.1", "nowhere.invalid", "check that it runs"),
        ("amqp://", "", "check that it runs"),
    ],
)
def test_check_says_what_to_do_about_the_broker(
    amqp: Amqp,
    settings: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    advice: str,
) -> None:
    settings.setenv("AMQP_URL", amqp.url.replace(old, new))
    assert main(["check"]) == 69
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("FAIL  RabbitMQ: ")
    assert advice in line
    assert "guest:" not in line


def test_check_tells_a_queue_that_was_declared_otherwise(
    amqp: Amqp, capsys: pytest.CaptureFixture[str]
) -> None:
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        connection.channel().queue_declare(amqp.queues.dead, durable=True, arguments={"x-max-length": 5})
    assert main(["check"]) == 69
    assert "delete the queue" in capsys.readouterr().out


def test_check_finds_a_backend_of_a_private_ca_well_only_where_the_run_reaches_it_too(
    tmp_path: Path, receiver: Receiver, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The check took the CA and the proxy from the environment, and the run, which did neither, failed."""
    files = certificate(tmp_path)

    def check() -> str:
        main(["check"])
        return next(line for line in capsys.readouterr().out.splitlines() if "backend http" in line)

    def run() -> Answer:
        settings_now = DispatcherSettings.from_environment()
        webhook = make_webhook(settings_now, make_allowed_hosts(settings_now))
        return webhook.patch(f"{settings_now.backend_url}/x", {"style_id": 42}, "msg_1")

    with tls_in_front_of(int(receiver.url.rpartition(":")[2]), files) as port:
        settings.setenv("BACKEND_URL", f"https://127.0.0.1:{port}")
        settings.setenv("BACKEND_TOKEN", receiver.token)
        assert "set REQUESTS_CA_BUNDLE to a file" in check()
        assert isinstance(run(), TryAgain)
        settings.setenv("REQUESTS_CA_BUNDLE", str(files[0]))
        settings.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
        assert check().startswith("ok ")
        assert run() == Delivered()
        settings.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "missing.crt"))
        assert f"REQUESTS_CA_BUNDLE {tmp_path / 'missing.crt'} cannot be used" in check()


@pytest.mark.parametrize("variable", ["MODELS_DIR", "LOCAL_STATE_DIR"])
def test_check_names_a_local_folder_that_cannot_be_used(
    tmp_path: Path, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    (tmp_path / "file").write_text("")
    settings.setenv(variable, str(tmp_path / "file" / "folder"))
    assert main(["check"]) == 69
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 1
    assert f"set {variable} to a folder of yours" in failed[0]


def test_check_says_who_relays(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("LEASE_NAME", "relay")
    said: list[str] = []

    def look() -> None:
        assert main(["check"]) == 0
        said.append(capsys.readouterr().out.splitlines()[-1])

    look()
    stop = threading.Event()
    lease = Lease(cluster.client(), cluster.namespace, "relay", "pod-a", look, stop.set)
    lease.run(stop)  # until it is held; then it is handed back
    leases = CoordinationV1Api(cluster.client())
    held = leases.read_namespaced_lease("relay", cluster.namespace)
    held.spec.holder_identity = "pod-b"
    leases.replace_namespaced_lease("relay", cluster.namespace, held)
    look()
    held = leases.read_namespaced_lease("relay", cluster.namespace)
    held.spec.renew_time = datetime(2026, 1, 1, tzinfo=UTC)
    leases.replace_namespaced_lease("relay", cluster.namespace, held)
    look()
    assert "held by nobody" in said[0]
    assert said[1:3] == ["ok    Lease relay is held by pod-a", "ok    Lease relay is held by pod-b"]
    assert "held by nobody" in said[3]


def test_check_names_each_thing_that_is_missing(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings.setenv("AMQP_URL", f"amqp://guest:guest@127.0.0.1:{free_port()}/%2F")
    settings.setenv("BACKEND_URL", f"http://127.0.0.1:{free_port()}")
    settings.setenv("JOB_TEMPLATE", str(tmp_path / "missing.yaml"))
    cluster.rules = [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch", "create"]}
    ]
    assert main(["check"]) == 69
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["FAIL", "FAIL", "FAIL", "ok", "FAIL"]
    assert "patch jobs" in lines[-1]
    assert "list pods" in lines[-1]
    assert "create jobs" not in lines[-1]
