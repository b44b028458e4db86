"""The dispatcher as its own process between a real broker, an API server and a backend."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from kubernetes import client

from dispatcher.job import job_name
from dispatcher.queues import REASON_HEADER
from job_contract import names
from job_contract.outcome import ExitCode
from tests.dispatcher.cluster import RESULT, end_at_deadline, stick, told, wait_told
from tests.dispatcher.process import SECRET, Dispatcher
from tests.dispatcher.support import Amqp, message, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController, Run
from tests.parts.receiver import Receiver

SOFTWARE = '{"failure_code":"TRAINING_ERROR","failure_reason":"The loss is no number; lower learning_rate."}'


class World:
    """A dispatcher and everything around it."""

    def __init__(
        self, folder: Path, amqp: Amqp, server: ApiServer, controller: JobController, receiver: Receiver
    ) -> None:
        self.folder = folder
        self.amqp = amqp
        self.server = server
        self.controller = controller
        self.receiver = receiver
        self.kubeconfig = server.kubeconfig(folder / "kubeconfig")

    def dispatcher(self, **settings: str) -> Dispatcher:
        cluster = {"JOB_BACKEND": "kubernetes", "KUBECONFIG": str(self.kubeconfig)}
        return Dispatcher(
            self.folder, self.amqp.url, self.amqp.queues, self.receiver, **{**cluster, **settings}
        )

    def send(self, style_id: int | str = 42, **fields: Any) -> str:
        """Publish a message; return the name of its Job."""
        body = message(style_id, **fields)
        self.amqp.publish(body)
        return job_name(style_id, body["task_id"])

    def wait_for_job(self, name: str) -> dict[str, Any]:
        job = self.server.wait_for(lambda: self.server.get("jobs", name), 20)
        assert job
        return job

    def suspended(self, name: str) -> bool:
        return bool(self.wait_for_job(name)["spec"]["suspend"])

    def delete_job(self, name: str) -> None:
        batch = client.BatchV1Api(self.server.client(admin=True))
        batch.delete_namespaced_job(name, self.server.namespace, propagation_policy="Background")


@pytest.fixture
def world(
    tmp_path: Path, amqp: Amqp, api_server: ApiServer, controller: JobController, receiver: Receiver
) -> World:
    return World(tmp_path, amqp, api_server, controller, receiver)


def test_a_message_becomes_a_job_and_its_statuses_reach_the_backend(world: World) -> None:
    with world.dispatcher() as dispatcher:
        name = world.send(num_epochs=10)
        world.wait_for_job(name)
        pod = world.controller.create_pod(name)
        world.controller.schedule(pod)
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (0, 1))
        assert world.receiver.patches == []
        world.controller.run(pod)
        wait_told(world.receiver, "processing")
        world.controller.finish(name, 0, RESULT)
        patches = wait_told(world.receiver, "processing", "completed")
        assert dispatcher.stop() == ExitCode.OK
    for patch in patches:
        standardwebhooks.Webhook(SECRET).verify(patch.body.decode(), patch.headers)
    assert world.amqp.depth(world.amqp.queues.work) == 0
    assert "Traceback" not in dispatcher.log_text()


def test_every_log_line_of_a_training_names_style_task_and_job(world: World) -> None:
    world.controller.run_all()
    with world.dispatcher() as dispatcher:
        name = world.send(task_id="task-7")
        wait_told(world.receiver, "processing", "completed")
        dispatcher.stop()
    lines = [json.loads(line) for line in dispatcher.log_text().splitlines()]
    ours = [line for line in lines if line["event"] in ("Job created", "status delivered")]
    assert len(ours) == 3
    for line in ours:
        assert (line["style"], line["task"], line["job"]) == (42, "task-7", name)
    for secret in ("backend-token", "dispatcher-token", SECRET):
        assert secret not in dispatcher.log_text()


def test_a_pod_that_dies_and_is_retried_gives_no_failed(world: World) -> None:
    world.controller.run_all(
        lambda _job, attempt: Run(70, SOFTWARE, seconds=0.1) if attempt < 3 else Run(seconds=0.1)
    )
    with world.dispatcher():
        world.send()
        wait_told(world.receiver, "processing", "completed")
    assert told(world.receiver) == ["processing", "completed"]


def test_a_training_that_fails_for_good_says_why_once(world: World) -> None:
    world.controller.run_all(lambda _job, _attempt: Run(65, SOFTWARE, seconds=0.1))
    with world.dispatcher():
        world.send()
        patches = wait_told(world.receiver, "processing", "failed")
    assert patches[-1].json["failure_reason"] == "The loss is no number; lower learning_rate."
    assert len(world.server.all("pods")) == 1


def test_a_deleted_job_is_told_as_cancelled_and_goes(world: World) -> None:
    world.controller.run_all(lambda _job, _attempt: Run(seconds=None))
    with world.dispatcher():
        name = world.send()
        wait_told(world.receiver, "processing")
        world.delete_job(name)
        patches = wait_told(world.receiver, "processing", "failed")
        world.server.wait_for(lambda: world.server.get("jobs", name) is None)
    assert patches[-1].json["failure_code"] == "JOB_DELETED"


def test_a_job_that_ends_and_expires_while_the_dispatcher_is_down_is_told_when_it_is_back(
    world: World,
) -> None:
    world.controller.run_all(lambda _job, _attempt: Run(seconds=0.5))
    with world.dispatcher(JOB_TTL_SECONDS="0") as dispatcher:
        name = world.send()
        wait_told(world.receiver, "processing")
        dispatcher.kill()
        world.server.wait_for(
            lambda: "deletionTimestamp" in (world.server.get("jobs", name) or {"metadata": {}})["metadata"]
        )
        dispatcher.start()
        wait_told(world.receiver, "processing", "completed")
        world.server.wait_for(lambda: world.server.get("jobs", name) is None)


def test_a_job_deleted_while_the_dispatcher_is_down_is_told_when_it_is_back(world: World) -> None:
    world.controller.run_all(lambda _job, _attempt: Run(seconds=None))
    with world.dispatcher() as dispatcher:
        name = world.send()
        wait_told(world.receiver, "processing")
        dispatcher.kill()
        world.delete_job(name)
        dispatcher.start()
        wait_told(world.receiver, "processing", "failed")
        world.server.wait_for(lambda: world.server.get("jobs", name) is None)


def test_two_requests_for_one_style_train_one_after_the_other_in_order(world: World) -> None:
    with world.dispatcher() as dispatcher:
        jobs = []
        for _ in range(3):
            jobs.append(world.send())
            world.wait_for_job(jobs[-1])
        assert [world.suspended(name) for name in jobs] == [False, True, True]
        world.controller.start_pod(jobs[0])
        wait_until(lambda: told(world.receiver) == ["processing"])
        dispatcher.kill()  # who comes back must not release one beside the one that runs
        dispatcher.start()
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (0, 1), 20)
        assert [world.suspended(name) for name in jobs] == [False, True, True]
        world.controller.finish(jobs[0], 0, RESULT)
        world.server.wait_for(lambda: not world.suspended(jobs[1]))
        assert world.suspended(jobs[2])
        world.controller.finish(jobs[1], 0, RESULT)
        world.server.wait_for(lambda: not world.suspended(jobs[2]))


def test_with_kueue_the_second_request_for_a_style_enters_the_queue_when_the_first_is_done(
    world: World,
) -> None:
    """Kueue starts what is in its queues: both trained at once, and the second failed."""
    with world.dispatcher(KUEUE_QUEUE="gpus") as dispatcher:
        jobs = []
        for _ in range(2):
            jobs.append(world.send())
            world.wait_for_job(jobs[-1])
        assert (queue_of(world, jobs[0]), world.suspended(jobs[0])) == ("gpus", False)
        assert (queue_of(world, jobs[1]), world.suspended(jobs[1])) == (None, True)
        world.controller.finish(jobs[0], 0, RESULT)
        world.server.wait_for(lambda: queue_of(world, jobs[1]) == "gpus")
        job = world.wait_for_job(jobs[1])
        assert job["spec"]["suspend"] is True  # Kueue ends that
        assert not job["metadata"].get("annotations")
        assert [line["waits"] for line in logged(dispatcher, "Job created")] == [False, True]


def queue_of(world: World, name: str) -> str | None:
    queue: str | None = world.wait_for_job(name)["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    return queue


def logged(dispatcher: Dispatcher, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in dispatcher.log_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_full_limit_leaves_messages_in_the_queue_and_a_freed_place_takes_the_next(world: World) -> None:
    with world.dispatcher(MAX_ACTIVE_JOBS="2"):
        jobs = [world.send(style) for style in range(4)]
        wait_until(lambda: len(world.server.all("jobs")) == 2, 20)
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (2, 0), 10, "two wait, none held")
        (first, _) = [job["metadata"]["name"] for job in world.server.all("jobs")]
        world.controller.finish(first, 0, RESULT)
        wait_until(lambda: len(world.server.all("jobs")) == 3, 3, "a place was free")
        for _ in range(2):
            for job in world.server.all("jobs"):
                world.controller.finish(job["metadata"]["name"], 0, RESULT)
        wait_until(lambda: {job["metadata"]["name"] for job in world.server.all("jobs")} == set(jobs), 15)


def test_a_full_quota_leaves_messages_in_the_queue(world: World) -> None:
    world.server.job_quota = 1
    with world.dispatcher():
        world.send(1)
        wait_until(lambda: len(world.server.all("jobs")) == 1, 20)
        world.send(2)
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (1, 0))
        world.server.job_quota = 2
        wait_until(lambda: len(world.server.all("jobs")) == 2)
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (0, 1))


def test_429_with_retry_after_is_not_tried_before(world: World) -> None:
    fault = world.server.inject(
        Fault(429, verb="create", resource="jobs", headers={"Retry-After": "2"}, times=1)
    )
    with world.dispatcher():
        world.send()
        wait_until(lambda: len(world.server.all("jobs")) == 1, 20)
    assert fault.hits == 1
    creates = [
        request.monotonic
        for request in world.server.requests
        if (request.verb, request.target) == ("create", "jobs")
    ]
    assert creates[1] - creates[0] >= 1.9


def test_a_pod_that_cannot_start_is_given_up_after_its_grace_period(world: World) -> None:
    with world.dispatcher(START_GRACE_SECONDS="1"):
        name = world.send()
        world.wait_for_job(name)
        stick(world.controller, name)
        end_at_deadline(world.controller, name)
        patches = wait_told(world.receiver, "failed")
    assert patches[-1].json["failure_code"] == "IMAGE_PULL"


def test_every_bad_message_is_a_dead_letter_and_the_good_one_behind_them_trains(world: World) -> None:
    url, image = world.receiver.status_url, ["/a"]
    bad: list[tuple[bytes, str]] = [
        (b"no JSON", "JSON"),
        (b"[1, 2]", "object"),
        *(
            (json.dumps(body).encode(), word)
            for body, word in (
                ({"image_paths": image, "task_id": "t1"}, "style_id"),
                ({"style_id": [7], "image_paths": image, "task_id": "t2"}, "style_id"),
                ({"style_id": 1, "image_paths": [], "webhook_url": url(1)}, "image_paths"),
                ({"style_id": 2, "image_paths": image * 101, "webhook_url": url(2)}, "image_paths"),
                (
                    {"style_id": 3, "image_paths": image, "num_epochs": 0, "webhook_url": url(3)},
                    "num_epochs",
                ),
                ({"style_id": 4, "image_paths": image, "num_epochs": 501}, "num_epochs"),
                ({"style_id": "../x", "image_paths": image}, "style_id"),
                (
                    {"type": "upscale", "data": {"style_id": 5, "images": image}, "callback_url": url(5)},
                    "type",
                ),
                ({"style_id": 6, "image_paths": image, "webhook_url": "http://elsewhere/x"}, "webhook_url"),
                ({"style_id": 7, "image_paths": [], "task_id": "two\nlines \u2028 \ud800"}, "image_paths"),
            )
        ),
    ]
    with world.dispatcher() as dispatcher:
        for body, _ in bad:
            world.amqp.publish(body)
        world.send(99)
        wait_until(lambda: world.amqp.depth(world.amqp.queues.dead) == len(bad), 20)
        wait_until(lambda: len(world.server.all("jobs")) == 1)
        wait_until(lambda: world.amqp.depth(world.amqp.queues.notices) == 0)
        for style in range(1, 8):
            wait_told(world.receiver, "failed", style=style)
        assert dispatcher.stop() == ExitCode.OK
    reasons = {
        body: dict(properties.headers) for properties, body in world.amqp.take_all(world.amqp.queues.dead)
    }
    for body, word in bad:
        assert word in reasons[body][REASON_HEADER]
    assert {patch.json["failure_code"] for patch in world.receiver.patches} == {"INVALID_REQUEST"}
    assert len(world.receiver.patches) == 7
    ids = [patch.headers["webhook-id"] for patch in world.receiver.patches]
    assert len(set(ids)) == 7
    assert world.amqp.depth(world.amqp.queues.work) == 0


def test_a_job_that_the_cluster_never_takes_is_a_dead_letter_and_told(world: World) -> None:
    world.server.inject(Fault(422, verb="create", resource="jobs"))
    with world.dispatcher():
        world.send()
        wait_until(lambda: world.amqp.depth(world.amqp.queues.dead) == 1, 20)
        wait_told(world.receiver, "failed")
        # The refused one does not hold up its style.
        second = world.send()
        world.wait_for_job(second)
        assert not world.suspended(second)


def test_a_task_id_used_twice_for_different_requests_is_refused_and_tells_no_end_of_the_first(
    world: World,
) -> None:
    """`failed` with the task_id of a training that runs would be taken for that one's end."""
    with world.dispatcher() as dispatcher:
        first = world.send(task_id="same", num_epochs=10)
        world.wait_for_job(first)
        world.controller.start_pod(first)
        world.send(task_id="same", num_epochs=20)
        wait_until(lambda: world.amqp.depth(world.amqp.queues.dead) == 1, 20)
        world.send(task_id="same", num_epochs=10)
        wait_until(lambda: world.amqp.state(world.amqp.queues.work) == (0, 1))
        events = world.server.wait_for(
            lambda: [event for event in world.server.all("events") if event["reason"] == "TaskIdReused"]
        )
        assert [event["involvedObject"]["name"] for event in events] == [first]
        world.controller.finish(first, 0, RESULT)
        wait_told(world.receiver, "processing", "completed")
        assert world.amqp.depth(world.amqp.queues.notices) == 0
        assert dispatcher.stop() == ExitCode.OK
    assert told(world.receiver) == ["processing", "completed"]
    assert len(world.server.all("jobs")) == 1


def test_a_task_id_used_again_after_the_end_of_its_training_is_refused_and_told(world: World) -> None:
    """Whoever sent it would wait for ever."""
    world.controller.run_all()
    with world.dispatcher():
        world.send(task_id="same", num_epochs=10)
        wait_told(world.receiver, "processing", "completed")
        world.send(43)  # what is told of a Job that came later was seen after what was written on the first
        wait_told(world.receiver, "processing", "completed", style=43)
        world.send(task_id="same", num_epochs=20)
        patches = wait_told(world.receiver, "processing", "completed", "failed")
        assert world.amqp.depth(world.amqp.queues.dead) == 1
    refusal = patches[-1].json
    assert (refusal["task_id"], refusal["failure_code"]) == ("same", "INVALID_REQUEST")
    assert "task_id was used before" in refusal["failure_reason"]


def test_the_backend_down_for_a_while_is_told_everything_in_order(world: World) -> None:
    world.controller.run_all()
    world.receiver.stop()
    with world.dispatcher() as dispatcher:
        jobs = [world.send(style) for style in range(3)]
        wait_until(lambda: "status not delivered" in dispatcher.log_text(), 20)
        dispatcher.kill()
        dispatcher.start()
        world.receiver.start()
        for style in range(3):
            wait_told(world.receiver, "processing", "completed", style=style)
        for name in jobs:
            world.server.wait_for(
                lambda name=name: (
                    names.FINALIZER  # type: ignore[misc]  # a default binds the loop's name
                    not in (world.wait_for_job(name)["metadata"].get("finalizers") or ())
                )
            )


def test_a_kill_between_the_patch_and_its_annotation_repeats_the_same_patch(world: World) -> None:
    with world.dispatcher() as dispatcher:
        name = world.send()
        world.wait_for_job(name)
        fault = world.server.inject(Fault(hang=True, verb="patch", resource="jobs"))
        world.controller.start_pod(name)
        wait_until(lambda: fault.hits == 1)
        dispatcher.kill()
        world.server.release_hangs()
        dispatcher.start()
        world.receiver.wait_for(lambda patches: len(patches) == 2, 20)
        world.controller.finish(name, 0, RESULT)
        wait_told(world.receiver, "processing", "completed")
    first, second = world.receiver.patches[:2]
    assert (first.headers["webhook-id"], first.body) == (second.headers["webhook-id"], second.body)


def test_sigterm_ends_it_in_ten_seconds_though_no_job_is_ever_created(world: World) -> None:
    with world.dispatcher() as dispatcher:
        fault = world.server.inject(Fault(hang=True, verb="create", resource="jobs", times=99))
        for style in range(12):
            world.send(style)
        wait_until(lambda: fault.hits > 0, 20)
        began = time.monotonic()
        assert dispatcher.stop(timeout=30) == ExitCode.OK
        assert time.monotonic() - began < 10
    wait_until(lambda: world.amqp.depth(world.amqp.queues.work) == 12)


def test_redrive_and_release_do_what_they_say(world: World) -> None:
    world.server.inject(Fault(422, verb="create", resource="jobs"))
    with world.dispatcher() as dispatcher:
        name = world.send()
        wait_until(lambda: world.amqp.depth(world.amqp.queues.dead) == 1, 20)
        assert dispatcher.command("redrive").returncode == ExitCode.OK
        world.wait_for_job(name)
        dispatcher.kill()
        assert names.FINALIZER in world.wait_for_job(name)["metadata"]["finalizers"]
        assert dispatcher.command("release").returncode == ExitCode.OK
        assert names.FINALIZER not in (world.wait_for_job(name)["metadata"].get("finalizers") or ())


def test_without_a_cluster_it_does_not_start_and_says_why(world: World) -> None:
    with world.dispatcher(KUBECONFIG=str(world.folder / "nowhere")) as dispatcher:
        wait_until(lambda: not dispatcher.running, 20)
        assert "KUBECONFIG" in dispatcher.log_text()
        assert "Traceback" not in dispatcher.log_text()
