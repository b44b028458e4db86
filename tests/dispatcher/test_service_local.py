"""`python -m dispatcher` on one machine: a real broker, a real backend, real child processes, real kills."""

import json
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from dispatcher.job import load_template, trainer_container
from dispatcher.queues import REASON_HEADER
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, message, wait_until
from tests.parts.receiver import Answer, Receiver

TRAINER = """
import json, os, sys, time
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text())
trace = Path(__file__).parent / "runs" / request["task_id"]
with trace.open("a") as file:
    file.write("x")
attempt = len(trace.read_text())
plan = json.loads(request.get("trigger_word") or "{}")
deadline = time.monotonic() + plan.get("seconds", 0)
while time.monotonic() < deadline:
    time.sleep(0.01)
end = Path(os.environ["TERMINATION_MESSAGE_PATH"])
codes = plan.get("codes", [])
if attempt <= len(codes):
    end.write_text(json.dumps({"failure_code": "DOWNLOAD_FAILED", "failure_reason": "S3 is down; wait."}))
    sys.exit(codes[attempt - 1])
weights = Path(os.environ["MODELS_DIR"], str(request["style_id"]), "lora_weights.safetensors")
weights.parent.mkdir(parents=True, exist_ok=True)
weights.write_bytes(b"weights")
end.write_text(json.dumps({"model_path": str(weights), "loss": 0.1, "epochs": 100, "seconds": 1.0}))
"""

BAD: dict[str, tuple[bytes, str, bool]] = {
    "not JSON": (b"{style_id: 1}", "JSON", False),
    "no object": (b'["style_id", 1]', "object", False),
    "no style_id": (b'{"image_paths": ["/a"]}', "style_id", False),
    "wrong style_id": (b'{"style_id": {"a": 1}, "image_paths": ["/a"]}', "style_id", False),
    "path in style_id": (b'{"style_id": "../x", "image_paths": ["/a"]}', "style_id", False),
    "no images": (b'{"style_id": 901,  "image_paths": []}', "image_paths", True),
    "101 images": (json.dumps({"style_id": 902, "image_paths": ["/a"] * 101}).encode(), "image_paths", True),
    "epochs 0": (b'{"style_id": 903, "image_paths": ["/a"], "num_epochs": 0}', "num_epochs", True),
    "epochs 501": (b'{"style_id": 904, "image_paths": ["/a"], "num_epochs": 501}', "num_epochs", True),
    "unknown type": (
        b'{"type": "inference", "data": {"style_id": 905, "image_paths": ["/a"]}}',
        "type",
        True,
    ),
    "foreign host": (
        b'{"style_id": 906, "image_paths": ["/a"], "webhook_url": "http://169.254.169.254/x"}',
        "webhook_url",
        True,
    ),
    "wrong task_id": (b'{"style_id": 907, "image_paths": ["/a"], "task_id": 7}', "task_id", True),
    "long task_id": (
        json.dumps({"style_id": 908, "image_paths": ["/a"], "task_id": "t" * 257}).encode(),
        "task_id",
        True,
    ),
    "longer task_id": (
        json.dumps({"style_id": 909, "image_paths": ["/a"], "task_id": "t" * 258}).encode(),
        "task_id",
        True,
    ),
}
"""What it is: the body, what the reason names, and whether the backend can be told of it."""


@pytest.fixture
def dispatcher(tmp_path: Path, amqp: Amqp, receiver: Receiver) -> Iterator[Dispatcher]:
    """A dispatcher that is not started yet; its trainings are the script above."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "trainer.py").write_text(TRAINER)
    template = load_template(None)
    trainer_container(template)["command"] = [
        "python",
        str(tmp_path / "trainer.py"),
        "/etc/lora/request.json",
    ]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(template))
    dispatcher = Dispatcher(
        tmp_path,
        amqp.url,
        amqp.queues,
        receiver,
        JOB_BACKEND="local",
        JOB_TEMPLATE=str(tmp_path / "job.yaml"),
        LOCAL_STATE_DIR=str(tmp_path / "state"),
        MODELS_DIR=str(tmp_path / "models"),
        LOCAL_GPUS="0,1",
        LOCAL_FIRST_RETRY_SECONDS="0.1",
    )
    yield dispatcher
    if dispatcher.running:
        dispatcher.stop(40)
    wait_until(lambda: not processes_of(tmp_path), 15, "no process of the test is left")


def processes_of(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and str(folder) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def runs(tmp_path: Path, task: str) -> int:
    path = tmp_path / "runs" / task
    return len(path.read_text()) if path.exists() else 0


def planned(style: int, **plan: Any) -> dict[str, Any]:
    return message(style, trigger_word=json.dumps(plan))


def told(receiver: Receiver, style: int | str) -> list[str | None]:
    return receiver.statuses(f"/api/models/{style}/status")


def wait_told(receiver: Receiver, style: int | str, *statuses: str, timeout: float = 20) -> None:
    wait_until(
        lambda: told(receiver, style) == list(statuses),
        timeout,
        f"{style} told {statuses}",
    )


def test_each_bad_message_is_answered_and_the_consumer_goes_on(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver
) -> None:
    with dispatcher:
        for body, _, _ in BAD.values():
            amqp.publish(body)
        amqp.publish(message(42))
        wait_told(receiver, 42, "processing", "completed")
        wait_until(lambda: amqp.depth(amqp.queues.dead) == len(BAD), what="all bad ones are dead letters")
        wait_until(lambda: len(receiver.patches) == 2 + sum(told for _, _, told in BAD.values()))
    dead = {
        body: str(properties.headers[REASON_HEADER]) for properties, body in amqp.take_all(amqp.queues.dead)
    }
    assert dead.keys() == {body for body, _, _ in BAD.values()}
    for what, (body, field, is_told) in BAD.items():
        assert field in dead[body], what
        if is_told:
            style = (json.loads(body).get("data") or json.loads(body))["style_id"]
            [patch] = [patch for patch in receiver.patches if patch.path == f"/api/models/{style}/status"]
            assert (patch.status, patch.json["failure_code"]) == ("failed", "INVALID_REQUEST")
            assert field in patch.json["failure_reason"]
    deliveries = {patch.headers["webhook-id"] for patch in receiver.patches}
    assert len(deliveries) == len(receiver.patches), "a backend takes one of the same id for a repetition"


def test_all_three_message_forms_are_trained(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    data = {"style_id": 2, "image_paths": ["/a"], "num_epochs": 7}
    parameters = {"epochs": 7, "learning_rate": 0.0001, "batch_size": 1}
    envelope = {"task_id": "b", "type": "model_training", "webhook_url": receiver.status_url(2), "data": data}
    callback = {
        "task_id": "c",
        "type": "model_training",
        "callback_url": receiver.status_url(3),
        "data": {"style_id": 3, "images": ["/a"], "parameters": parameters},
    }
    with dispatcher:
        amqp.publish({"style_id": 1, "image_paths": ["/a"], "webhook_url": receiver.status_url(1)})
        amqp.publish(envelope)
        amqp.publish(callback)
        for style in (1, 2, 3):
            wait_told(receiver, style, "processing", "completed")
    requests = [json.loads(path.read_text()) for path in tmp_path.glob("state/jobs/*/job.json")]
    assert len(requests) == 3
    assert {patch.json["task_id"] for patch in receiver.patches} >= {"b", "c"}


def test_statuses_arrive_in_order_once_a_backend_that_was_down_is_back(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.stop()
    with dispatcher:
        tasks = [amqp.publish(planned(style)) for style in (1, 2, 3)]
        wait_until(
            lambda: all(runs(tmp_path, json.loads(task)["task_id"]) for task in tasks),
            what="trainings go on while the backend is down",
        )
        dispatcher.kill()
        dispatcher.start()
        receiver.start()
        for style in (1, 2, 3):
            wait_told(receiver, style, "processing", "completed")


def test_a_backend_that_answers_500_gets_the_status_when_it_is_well(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver
) -> None:
    receiver.answer = lambda _patch: Answer(500)
    with dispatcher:
        amqp.publish(planned(1))
        receiver.wait_for(lambda patches: len(patches) >= 3)
        assert {patch.status for patch in receiver.patches} == {"processing"}
        receiver.answer = None
        wait_told(receiver, 1, "processing", "completed")


def test_a_service_that_was_down_is_retried_and_bad_data_is_not(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    retried, hopeless, unlucky = (
        planned(1, codes=[69, 69]),
        planned(2, codes=[65]),
        planned(3, codes=[69] * 9),
    )
    with dispatcher:
        for body in (retried, hopeless, unlucky):
            amqp.publish(body)
        wait_told(receiver, 1, "processing", "completed")
        wait_told(receiver, 2, "processing", "failed")
        wait_told(receiver, 3, "processing", "failed")
    assert [runs(tmp_path, body["task_id"]) for body in (retried, hopeless, unlucky)] == [3, 1, 4]
    assert receiver.patches[-1].json["failure_reason"] == "S3 is down; wait."


def test_two_requests_for_one_style_train_one_after_the_other(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    first, second = planned(7, seconds=0.5), planned(7)
    with dispatcher:
        amqp.publish(first)
        wait_until(lambda: runs(tmp_path, first["task_id"]))
        amqp.publish(second)
        wait_told(receiver, 7, "processing", "completed", "processing", "completed")
    ends = [patch.json["task_id"] for patch in receiver.patches]
    assert ends == [first["task_id"]] * 2 + [second["task_id"]] * 2


def test_sigterm_interrupts_the_training_and_the_next_dispatcher_resumes_it(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    body = planned(1, seconds=1.0)
    with dispatcher:
        amqp.publish(body)
        wait_told(receiver, 1, "processing")
        wait_until(lambda: runs(tmp_path, body["task_id"]) == 1)
        assert dispatcher.stop(10) == 0
        assert processes_of(tmp_path) == []
        dispatcher.start()
        wait_told(receiver, 1, "processing", "completed")
    assert runs(tmp_path, body["task_id"]) == 2


def test_killed_at_random_moments_every_request_is_trained_once_and_told_in_order(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    bodies = [planned(style % 9, seconds=dice.uniform(0, 0.3)) for style in range(12)]
    with dispatcher:
        for number in range(6):
            for body in bodies[2 * number : 2 * number + 2]:
                amqp.publish(body)
            moment = time.monotonic() + dice.uniform(0.3, 1.8)
            wait_until(lambda moment=moment: time.monotonic() > moment)  # type: ignore[misc]
            assert dispatcher.running
            dispatcher.kill()
            dispatcher.start()
        for style in range(9):
            times = 2 if style < 3 else 1
            wait_told(receiver, style, *("processing", "completed") * times, timeout=30)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
    assert {body["task_id"]: runs(tmp_path, body["task_id"]) for body in bodies} == {
        body["task_id"]: 1 for body in bodies
    }


def test_a_second_dispatcher_on_the_same_state_says_so_and_ends(
    dispatcher: Dispatcher, amqp: Amqp, receiver: Receiver
) -> None:
    with dispatcher:
        wait_until(lambda: amqp.state(amqp.queues.work)[1] == 1)
        second = dispatcher.command("run")
    assert second.returncode == 69
    assert "LOCAL_STATE_DIR" in second.stderr
    assert "Traceback" not in second.stderr


def test_an_unusable_setting_is_named_and_nothing_is_started(dispatcher: Dispatcher, tmp_path: Path) -> None:
    for broken in ("no such file", "no Job"):
        template = tmp_path / "job.yaml"
        if broken == "no Job":
            template.write_text("spec: {}")
        else:
            template.unlink()
        ended: subprocess.CompletedProcess[str] = dispatcher.command("run")
        assert ended.returncode == 78, broken
        assert "JOB_TEMPLATE" in ended.stderr
        assert "Traceback" not in ended.stderr
