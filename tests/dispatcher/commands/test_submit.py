"""`submit`: what is published, and what `--wait` hears."""

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pika
import pytest

from dispatcher.__main__ import main
from dispatcher.backends.kubernetes import KubernetesBackend
from dispatcher.queues import refusal_key
from dispatcher.refusal_listener import RefusalListener
from tests.dispatcher.cluster import RESULT, batch_api, new_job, wait_told
from tests.dispatcher.commands.printed import Printed
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController
from tests.parts.ports import free_port
from tests.parts.receiver import Receiver


def published(amqp: Amqp) -> dict[str, Any]:
    taken = amqp.take(amqp.queues.work)
    assert taken
    return dict(json.loads(taken[1]))


def test_submit_publishes_what_the_flags_say(amqp: Amqp, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--epochs", "7", "--seed", "1", "--learning-rate", "1e-3", "--batch-size", "2"]
    captions = ["--captions", "a cat", "a dog", "--trigger-word", "blorp"]
    assert main(["submit", "--style-id", "42", "--images", "/a", "/b", *numbers, *captions]) == 0
    body = published(amqp)
    assert len(body.pop("task_id")) == 36
    assert body == {
        "style_id": 42,
        "image_paths": ["/a", "/b"],
        "num_epochs": 7,
        "seed": 1,
        "learning_rate": 1e-3,
        "batch_size": 2,
        "captions": ["a cat", "a dog"],
        "trigger_word": "blorp",
    }
    assert "lora-42-" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["042", "art", "-01"])
def test_submit_keeps_a_style_id_that_is_no_plain_number_as_text(amqp: Amqp, text: str) -> None:
    assert main(["submit", f"--style-id={text}", "--images", "/a"]) == 0
    assert published(amqp)["style_id"] == text


def test_submit_names_a_style_id_that_no_style_may_have(
    amqp: Amqp, capsys: pytest.CaptureFixture[str]
) -> None:
    """A superscript two is a digit, and no number: it ended in a traceback."""
    assert main(["submit", "--style-id", "²", "--images", "/a"]) == 65
    assert "style_id" in capsys.readouterr().err


def test_submit_publishes_whole_paths(amqp: Amqp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer looked for a.jpg in the folder in which the dispatcher was started."""
    monkeypatch.chdir(tmp_path)
    assert main(["submit", "--style-id", "1", "--images", "a.jpg", "s3://b/c.jpg"]) == 0
    assert published(amqp)["image_paths"] == [str(tmp_path / "a.jpg"), "s3://b/c.jpg"]


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
    printed = Printed(capsys)
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
    with (
        RefusalListener(amqp.url, amqp.queues, b"one") as one,
        RefusalListener(amqp.url, amqp.queues, b"two") as two,
    ):
        with pika.BlockingConnection(pika.URLParameters(amqp.url)) as connection:
            connection.channel().basic_publish(amqp.queues.refusals, refusal_key(b"two"), b"it is bad")
        wait_until(lambda: two.wait(0.05) == "it is bad")
        assert one.wait(0.05) is None
