"""The subcommands as a person types them: what they print, what they change, how they end."""

import json
import logging
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pika
import pytest
import structlog
from kubernetes.client import CoordinationV1Api

from dispatcher.__main__ import main
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.backends.lease import Lease
from dispatcher.backends.local import LocalBackend
from dispatcher.job import trainer_container
from dispatcher.queues import REASON_HEADER, refusal_key
from dispatcher.refusals import Refusals
from dispatcher.relay_step import PROCESSING_ANNOTATION
from dispatcher.service import make_allowed_hosts, make_webhook
from dispatcher.settings import DispatcherSettings
from dispatcher.style_lanes import hold
from dispatcher.webhook import Answer, Delivered, TryAgain
from job_contract import names
from tests.dispatcher.cluster import RESULT, batch_api, new_job, wait_told
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, message, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver
from tests.parts.tls import certificate, tls_in_front_of


@pytest.fixture(autouse=True)
def settings(
    tmp_path: Path, amqp: Amqp, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a local dispatcher; main() sets up the logs, which are put back afterwards."""
    for name, value in {
        "AMQP_URL": amqp.url,
        "QUEUE": amqp.queues.work,
        "BACKEND_URL": receiver.url,
        "LOCAL_STATE_DIR": str(tmp_path / "state"),
        "MODELS_DIR": str(tmp_path / "models"),
        "LOG_FORMAT": "json",
    }.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    levels = {name: logging.getLogger(name).level for name in ("pika", "urllib3")}
    yield monkeypatch
    root.handlers, root.level = handlers, level
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path, settings: pytest.MonkeyPatch) -> ApiServer:
    settings.setenv("JOB_BACKEND", "kubernetes")
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    # The client reads KUBECONFIG once, when it is imported.
    settings.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    return api_server


def published(amqp: Amqp) -> dict[str, Any]:
    taken = amqp.take(amqp.queues.work)
    assert taken
    return dict(json.loads(taken[1]))


# submit


def test_submit_publishes_what_the_flags_say(amqp: Amqp, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--style-id", "42", "--images", "/a", "/b", "--epochs", "7", "--seed", "1"]) == 0
    body = published(amqp)
    assert len(body.pop("task_id")) == 36
    assert body == {"style_id": 42, "image_paths": ["/a", "/b"], "num_epochs": 7, "seed": 1}
    assert "lora-42-" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["042", "art", "-1"])
def test_submit_keeps_a_style_id_that_is_no_plain_number_as_text(amqp: Amqp, text: str) -> None:
    assert main(["submit", f"--style-id={text}", "--images", "/a"]) == 0
    assert published(amqp)["style_id"] == text


def test_submit_of_a_file_is_that_message_and_flags_win(amqp: Amqp, tmp_path: Path) -> None:
    path = tmp_path / "message.json"
    path.write_text(json.dumps({"style_id": 1, "image_paths": ["/a"], "task_id": "t", "num_epochs": 9}))
    assert main(["submit", "--file", str(path), "--style-id", "2"]) == 0
    assert published(amqp) == {"style_id": 2, "image_paths": ["/a"], "task_id": "t", "num_epochs": 9}


def test_flags_win_over_what_an_envelope_holds(amqp: Amqp, tmp_path: Path) -> None:
    path = tmp_path / "message.json"
    data = {"style_id": 1, "image_paths": ["/a"], "num_epochs": 9}
    path.write_text(json.dumps({"task_id": "t", "type": "model_training", "data": data}))
    assert main(["submit", "--file", str(path), "--style-id", "2", "--epochs", "3"]) == 0
    assert published(amqp)["data"] == {"style_id": 2, "image_paths": ["/a"], "num_epochs": 3}


def test_submit_publishes_nothing_that_would_be_refused(
    amqp: Amqp, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--style-id", "../x", "--images", "/a"]) == 65
    assert "style_id" in capsys.readouterr().err
    assert amqp.depth(amqp.queues.work) == -1


@pytest.mark.parametrize("text", [None, "{", "[1]"], ids=["missing", "no JSON", "no object"])
def test_a_file_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    path = tmp_path / "message.json"
    if text is not None:
        path.write_text(text)
    assert main(["submit", "--file", str(path)]) == 78
    errors = capsys.readouterr().err
    assert str(path) in errors
    assert errors.count("\n") == 1


def test_submit_says_that_the_broker_is_not_there(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("AMQP_URL", f"amqp://guest:pass-word@127.0.0.1:{free_port()}/%2F")
    assert main(["submit", "--style-id", "42", "--images", "/a"]) == 69
    errors = capsys.readouterr().err
    assert "RabbitMQ at AMQP_URL cannot be reached" in errors
    assert "pass-word" not in errors


@pytest.mark.parametrize(("exit_code", "returned"), [(0, 0), (65, 70)])
def test_submit_wait_follows_a_training_to_its_end(
    cluster: ApiServer,
    controller: JobController,
    receiver: Receiver,
    capsys: pytest.CaptureFixture[str],
    exit_code: int,
    returned: int,
) -> None:
    job = new_job(receiver, "task-9")
    name = job["metadata"]["name"]
    codes: list[int] = []
    arguments = ["submit", "--style-id", "42", "--images", "/data/a.jpg", "--task-id", "task-9"]
    arguments += ["--webhook-url", receiver.status_url(42), "--wait"]
    thread = threading.Thread(target=lambda: codes.append(main(arguments)))
    thread.start()
    printed = _Printed(capsys)
    wait_until(lambda: "waiting for the dispatcher" in printed.text())
    KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer").create(job)
    pod = controller.start_pod(name)
    cluster.write_log(pod, "epoch 3/100  loss 0.1  ETA 0:01:00\n")
    wait_until(lambda: "running, epoch 3/100" in printed.text())
    failure = '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is truncated."}'
    success = '{"model_path":"/models/42/lora_weights.safetensors","epochs":100,"seconds":1.0}'
    controller.finish(name, exit_code, failure if exit_code else success)
    thread.join(20)
    assert codes == [returned]
    end = "INVALID_IMAGES: b.png is truncated." if exit_code else "lora_weights.safetensors"
    assert end in printed.text()


@pytest.fixture
def dispatcher(tmp_path: Path, amqp: Amqp, cluster: ApiServer, receiver: Receiver) -> Iterator[Dispatcher]:
    """A dispatcher that runs; its `command` are those of a person beside it."""
    kubeconfig = str(cluster.kubeconfig(tmp_path / "kubeconfig"))
    with Dispatcher(
        tmp_path, amqp.url, amqp.queues, receiver, JOB_BACKEND="kubernetes", KUBECONFIG=kubeconfig
    ) as running:
        wait_until(lambda: amqp.state(amqp.queues.work)[1] == 1, 20, "it consumes")
        yield running


def test_submit_wait_ends_with_the_reason_when_its_message_becomes_a_dead_letter(
    dispatcher: Dispatcher, amqp: Amqp
) -> None:
    """It waited for ever: such a message has no Job to look at."""
    ended = dispatcher.command(
        *("submit", "--style-id", "42", "--images", "/a", "--webhook-url", "http://elsewhere/x", "--wait")
    )
    assert ended.returncode == 65
    assert "refused: webhook_url names the host elsewhere" in ended.stdout
    assert amqp.state(amqp.queues.dead) == (1, 0)


def test_submit_wait_ends_when_its_task_id_is_that_of_another_training(
    dispatcher: Dispatcher, cluster: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """The Job of that name is the other's: followed to its end, it would be taken for this one."""
    same = ("submit", "--style-id", "42", "--images", "/a", "--task-id", "same")
    assert dispatcher.command(*same, "--epochs", "10").returncode == 0
    [job] = cluster.wait_for(lambda: cluster.all("jobs"))
    controller.finish(job["metadata"]["name"], 0, RESULT)
    wait_told(receiver, "processing", "completed")
    ended = dispatcher.command(*same, "--epochs", "20", "--wait")
    assert ended.returncode == 65
    assert "task_id" in ended.stdout
    # Sent again as it was, it is the same training, and that one has completed.
    assert dispatcher.command(*same, "--epochs", "10", "--wait").returncode == 0


def test_submit_wait_ends_when_its_job_goes_and_not_when_the_cluster_does_not_answer_for_once(
    dispatcher: Dispatcher, cluster: ApiServer, controller: JobController
) -> None:
    arguments = ("submit", "--style-id", "42", "--images", "/a", "--wait")
    ended: list[subprocess.CompletedProcess[str]] = []
    waiting = threading.Thread(target=lambda: ended.append(dispatcher.command(*arguments)))
    waiting.start()
    [job] = cluster.wait_for(lambda: cluster.all("jobs"), 20)
    controller.start_pod(job["metadata"]["name"])
    lists = cluster.count("list", "jobs")
    fault = cluster.inject(Fault(500, verb="list", resource="jobs"))
    wait_until(lambda: fault.hits == 1)
    wait_until(lambda: cluster.count("list", "jobs") > lists + 1)
    batch_api(cluster).delete_namespaced_job(
        job["metadata"]["name"], cluster.namespace, propagation_policy="Background"
    )
    wait_until(lambda: any("deletionTimestamp" in pod["metadata"] for pod in cluster.all("pods")))
    controller.end_deleted_pods()
    waiting.join(30)
    # As it goes it is still seen as failed, or it is gone already.
    assert ended[0].returncode in (69, 70)
    assert "not seen now" in ended[0].stdout


def test_two_that_wait_hear_of_their_own_refusal_only(amqp: Amqp) -> None:
    with Refusals(amqp.url, amqp.queues, b"one") as one, Refusals(amqp.url, amqp.queues, b"two") as two:
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            connection.channel().basic_publish(amqp.queues.refusals, refusal_key(b"two"), b"it is bad")
        wait_until(lambda: two.wait(0.05) == "it is bad")
        assert one.wait(0.05) is None


class _Printed:
    """Collects standard output over several looks at it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().out
        return self._text


# status, redrive, release, check


def test_status_shows_each_training_of_a_cluster(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == 0
    assert "no trainings" in capsys.readouterr().out
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    for task, style in (("a", 1), ("b", 2)):
        backend.create(new_job(receiver, task, style))
    running, failing = (
        new_job(receiver, task, style)["metadata"]["name"] for task, style in (("a", 1), ("b", 2))
    )
    controller.start_pod(running)
    controller.finish(failing, 65, '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is bad."}')
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["STYLE", "JOB", "PHASE"]
    [first] = [line for line in lines if running in line]
    [second] = [line for line in lines if failing in line]
    assert first.split()[:4] == ["1", running, "running", "1"]
    assert second.split()[:3] == ["2", failing, "failed"]
    assert "INVALID_IMAGES: b.png is bad." in second


def test_status_says_what_only_events_say_of_a_training_that_does_not_start(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer").create(job)
    controller.sync(job["metadata"]["name"])
    forbidden = 'Error creating: pods "x" is forbidden: exceeded quota: gpus'
    controller.record(controller.job(job["metadata"]["name"]), "FailedCreate", forbidden)
    assert main(["status"]) == 0
    assert "exceeded quota: gpus" in capsys.readouterr().out


def test_status_looks_on_beside_a_local_dispatcher(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    trainer_container(job)["command"] = ["python", "-c", "raise SystemExit(65)"]
    backend = LocalBackend(tmp_path / "state", tmp_path / "models", ["cpu"])
    backend.create(job)
    stop = threading.Event()
    thread = threading.Thread(target=backend.run, args=(lambda _name: None, stop))
    thread.start()
    try:
        printed = _Printed(capsys)
        wait_until(lambda: main(["status"]) == 0 and " failed " in printed.text())
        assert job["metadata"]["name"] in printed.text()
        assert main(["release"]) == 0
        said = capsys.readouterr().out
        assert "Nothing to release" in said
        assert str(tmp_path / "state") in said
    finally:
        stop.set()
        thread.join(20)


def test_redrive_puts_dead_letters_back_as_they_were(amqp: Amqp, capsys: pytest.CaptureFixture[str]) -> None:
    body = message(1)
    amqp.publish(body)  # declares the queue
    dead = amqp.queues.dead
    original = amqp.take(amqp.queues.work)
    assert original
    with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
        channel = connection.channel()
        channel.queue_declare(dead, durable=True)
        headers = {REASON_HEADER: "x", "tenant": "art"}
        channel.basic_publish("", dead, original[1], pika.BasicProperties(headers=headers))
    assert main(["redrive"]) == 0
    assert capsys.readouterr().out == f"1 dead letters put back to {amqp.queues.work}\n"
    taken = amqp.take(amqp.queues.work)
    assert taken
    assert taken[1] == original[1]
    assert taken[0].headers == {"tenant": "art"}
    assert amqp.depth(dead) == 0


def test_release_clears_the_finalizers_that_no_dispatcher_will_clear(
    cluster: ApiServer, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    foreign = KubernetesBackend(cluster.client(), cluster.namespace, "another")
    jobs = [new_job(receiver, "a", 1), new_job(receiver, "b", 2)]
    jobs[1]["metadata"]["finalizers"].append("example.org/other")
    for job in jobs:
        backend.create(job)
    stranger = new_job(receiver, "c", 3, instance="another")
    foreign.create(stranger)
    first, second = (job["metadata"]["name"] for job in jobs)
    assert main(["release", first]) == 0
    assert finalizers(cluster, first) == []
    assert names.FINALIZER in finalizers(cluster, second)
    assert main(["release"]) == 0
    assert finalizers(cluster, second) == ["example.org/other"]
    assert finalizers(cluster, stranger["metadata"]["name"]) == [names.FINALIZER]
    assert "1 Jobs released" in capsys.readouterr().out


def test_release_leaves_the_lease_alone_unless_it_is_told_to_delete_it(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand beside a dispatcher that runs, it would take the hold of that one away."""
    settings.setenv("LEASE_NAME", "relay")
    leases = CoordinationV1Api(cluster.client())
    spec = {"holderIdentity": "a dispatcher that was uninstalled", "leaseDurationSeconds": 45}
    for name in ("relay", "another"):
        leases.create_namespaced_lease(cluster.namespace, {"metadata": {"name": name}, "spec": spec})
    assert main(["release"]) == 0
    assert cluster.get("leases", "relay")
    capsys.readouterr()
    assert main(["release", "--lease"]) == 0
    assert capsys.readouterr().out == "0 Jobs released\nLease relay deleted\n"
    assert [lease["metadata"]["name"] for lease in cluster.all("leases")] == ["another"]
    assert main(["release", "--lease"]) == 0
    assert "There is no Lease relay\n" in capsys.readouterr().out


def test_release_says_why_the_lease_is_still_there(
    cluster: ApiServer, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("LEASE_NAME", "relay")
    cluster.rules = [{"apiGroups": ["batch", ""], "resources": ["jobs", "pods"], "verbs": ["list"]}]
    assert main(["release", "--lease"]) == 69
    assert "the Lease relay could not be deleted: 403" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--lease"], ["--lease", "lora-42-0123456789ab"]])
def test_release_of_the_lease_needs_its_name_and_is_for_all_jobs_at_once(
    cluster: ApiServer,
    settings: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    if len(arguments) > 1:
        settings.setenv("LEASE_NAME", "relay")
    assert main(["release", *arguments]) == 78
    assert "LEASE_NAME" in capsys.readouterr().err
    assert cluster.requests == []


def finalizers(cluster: ApiServer, name: str) -> list[str]:
    job = cluster.get("jobs", name)
    return list(job["metadata"].get("finalizers") or ()) if job else []


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


def test_status_names_a_state_folder_that_cannot_be_used(
    tmp_path: Path, settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    settings.setenv("LOCAL_STATE_DIR", str(tmp_path / "file" / "folder"))
    assert main(["status"]) == 69
    assert "LOCAL_STATE_DIR" in capsys.readouterr().err


def test_status_calls_told_only_what_the_backend_took(
    cluster: ApiServer, controller: JobController, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that runs was shown as told while the backend was down."""
    job = new_job(receiver)
    backend = KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer")
    backend.create(job)
    controller.start_pod(job["metadata"]["name"])
    assert main(["status"]) == 0
    told = {"metadata": {"annotations": {PROCESSING_ANNOTATION: "processing 2026-11-24T08:00:00+00:00"}}}
    backend.patch(job["metadata"]["name"], told)
    assert main(["status"]) == 0
    before, after = [line.split() for line in capsys.readouterr().out.splitlines() if "running" in line]
    assert (before[5], after[5]) == ("-", "processing")


def test_status_says_that_a_training_waits_for_its_style(
    cluster: ApiServer, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    job = new_job(receiver)
    hold(job, 1)
    KubernetesBackend(cluster.client(), cluster.namespace, "lora-trainer").create(job)
    assert main(["status"]) == 0
    assert "its turn comes when no other training of its style" in capsys.readouterr().out


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


def test_a_misspelt_setting_is_named_and_nothing_is_done(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.setenv("MAX_ACTIVE_JOB", "3")
    assert main(["status"]) == 78
    assert "MAX_ACTIVE_JOBS" in capsys.readouterr().err


def test_run_without_a_place_for_statuses_says_what_to_set(
    settings: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings.delenv("BACKEND_URL")
    assert main(["run"]) == 78
    assert "BACKEND_URL" in capsys.readouterr().err
