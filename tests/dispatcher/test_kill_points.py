"""kill -9 at every named point between two side effects; afterwards nothing is lost, doubled or untold.

No hook in the dispatcher: one of its neighbours holds the next side effect's request, or the answer to the
last one, and the process dies there. Then the neighbour lets go, a new process starts, and the training is
seen through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from dispatcher.deadline import DEADLINE_ANNOTATION
from dispatcher.diagnosis import VERDICT_ANNOTATION
from dispatcher.job import job_name
from dispatcher.relay_step import PROCESSING_ANNOTATION, TERMINAL_ANNOTATION
from job_contract import names
from job_contract.outcome import ExitCode
from tests.dispatcher.cluster import RESULT, end_at_deadline, new_job, stick
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, message, through, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController, Run
from tests.parts.proxy import TcpProxy
from tests.parts.receiver import Answer, Patch, Receiver

LEASE = "relay"
BASIC_ACK = b"\x00\x3c\x00\x50"  # class 60, method 80 of AMQP 0-9-1
WRITE_PROCESSING = PROCESSING_ANNOTATION.encode()
WRITE_TERMINAL = TERMINAL_ANNOTATION.encode()
WRITE_VERDICT = VERDICT_ANNOTATION.encode()
WRITE_DEADLINE = DEADLINE_ANNOTATION.encode()
DEAD_LETTER = b"/data/bad.jpg"  # in the body of the message that is refused
NOTICE = b"_refused"  # in the id of the delivery that a notice holds

Condition = Callable[[], bool]


class World:
    """The dispatcher's neighbours, each of which can hold what it is asked."""

    def __init__(
        self,
        folder: Path,
        amqp: Amqp,
        proxy: TcpProxy,
        server: ApiServer,
        controller: JobController,
        receiver: Receiver,
    ) -> None:
        self.amqp, self.proxy = amqp, proxy
        self.server, self.controller, self.receiver = server, controller, receiver
        self.dispatcher = Dispatcher(
            folder,
            through(amqp.url, proxy.port),
            amqp.queues,
            receiver,
            JOB_BACKEND="kubernetes",
            KUBECONFIG=str(server.kubeconfig(folder / "kubeconfig")),
            START_GRACE_SECONDS="0.2",
            LEASE_NAME=LEASE,
            WEBHOOK_TIMEOUT_SECONDS="2",
        )

    def asked(self, **what: Any) -> Condition:
        """Hold a request to the API server, or with after=True its answer."""
        fault = self.server.inject(Fault(hang=True, **what))
        return lambda: fault.hits == 1

    def published(self, text: bytes, *, passed: bool = False) -> Condition:
        """Hold what the dispatcher sends to RabbitMQ, or let that pass and hold what follows."""
        self.proxy.hold_at(text, passed=passed)
        return self.proxy.held.is_set

    def told(self, status: str) -> Condition:
        """Take a PATCH, and never answer it."""
        self.receiver.answer = lambda patch: Answer(hang=patch.status == status)
        return lambda: any(patch.status == status for patch in self.receiver.patches)

    def acked_after(self, status: str) -> Condition:
        """Answer a PATCH, and hold the first ack to RabbitMQ from then on."""

        def answer(_patch: Patch) -> Answer:
            self.proxy.hold_at(BASIC_ACK)
            return Answer()

        self.receiver.answer = answer
        return lambda: self.told_now() == [(status,)] and self.proxy.held.is_set()

    def let_go(self) -> None:
        """What the dead process had under way is lost; its Lease has run out."""
        self.proxy.cut()
        self.proxy.resume()
        self.receiver.answer = None
        self.receiver.release()
        self.server.clear_faults()
        self.server.release_hangs()
        if self.server.get("leases", LEASE):
            leases = client.CoordinationV1Api(self.server.client(admin=True))
            leases.delete_namespaced_lease(LEASE, self.server.namespace)

    def ends_with_no_message_left(self) -> bool:
        """Stop the dispatcher; what it had not acked yet is in the queue again, and the next one's."""
        assert self.dispatcher.stop() == ExitCode.OK
        wait_until(lambda: self.amqp.state(self.amqp.queues.work)[1] == 0, 10, "the consumer is gone")
        if self.amqp.depth(self.amqp.queues.work) == 0:
            return True
        self.dispatcher.start()
        wait_until(lambda: self.amqp.state(self.amqp.queues.work) == (0, 1), 20, "it takes what is left")
        return False

    def told_now(self) -> list[tuple[str, ...]]:
        """Return what the backend was told of each Job; a repetition is the same PATCH, and counts once."""
        taken: dict[str, Patch] = {}
        for patch in self.receiver.patches:
            if patch.answered == 200:
                first = taken.setdefault(patch.headers["webhook-id"], patch)
                assert patch.body == first.body
        tasks = dict.fromkeys(patch.json["task_id"] for patch in taken.values())
        return [
            tuple(str(patch.status) for patch in taken.values() if patch.json["task_id"] == task)
            for task in tasks
        ]


class Training:
    """A message becomes a Job, which trains."""

    told: tuple[str, ...] = ("processing", "completed")
    """What the backend is told of each message, in order."""
    messages = 1
    jobs = 1
    """How many are there afterwards."""

    def begin(self, world: World) -> None:
        world.controller.run_all()
        self.send(world)

    def send(self, world: World, style: int = 42) -> str:
        body = message(num_epochs=10, style_id=style)
        world.amqp.publish(body)
        return job_name(body["style_id"], body["task_id"])

    def send_and_see_released(self, world: World, style: int = 42) -> str:
        """The Job controller makes no pod before that."""
        name = self.send(world, style)

        def is_released() -> bool:
            job = world.server.get("jobs", name)
            return job is not None and not job["spec"]["suspend"]

        world.server.wait_for(is_released, 20)
        return name

    def go_on(self, world: World) -> None:
        """Do what the training needs from others after the kill."""

    def check(self, world: World) -> None:
        assert len(world.server.all("jobs")) == self.jobs


class TwoOfOneStyle(Training):
    """The second waits until the first has ended."""

    messages = jobs = 2

    def begin(self, world: World) -> None:
        world.controller.run_all(lambda _job, _attempt: Run(seconds=0.2))
        self.send(world)
        world.server.wait_for(lambda: world.server.all("jobs"), 20)
        self.send(world)


class RunByHand(Training):
    """Somebody created the Job without the dispatcher, and so without its finalizer."""

    def begin(self, world: World) -> None:
        world.controller.run_all()
        job = new_job(world.receiver)
        del job["metadata"]["finalizers"]
        batch = client.BatchV1Api(world.server.client(admin=True))
        batch.create_namespaced_job(world.server.namespace, job)


class Stuck(Training):
    """The pod's image cannot be pulled, and the Job is given up."""

    told = ("failed",)

    def begin(self, world: World) -> None:
        self.name = self.send_and_see_released(world)
        stick(world.controller, self.name)

    def go_on(self, world: World) -> None:
        end_at_deadline(world.controller, self.name)

    def check(self, world: World) -> None:
        super().check(world)
        assert world.receiver.patches[-1].json["failure_code"] == "IMAGE_PULL"


class WithoutRoom(Training):
    """The pod waits for the GPU that another training has, and its Job's deadline is moved."""

    messages = jobs = 2

    def begin(self, world: World) -> None:
        self.first = self.send_and_see_released(world)
        world.controller.start_pod(self.first)
        wait_until(lambda: world.told_now() == [("processing",)], 20)
        self.second = self.send_and_see_released(world, style=43)
        self.pod = world.controller.create_pod(self.second)
        world.controller.unschedulable(self.pod, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")

    def go_on(self, world: World) -> None:
        world.server.wait_for(lambda: is_annotated(DEADLINE_ANNOTATION)(world), 20)
        world.controller.run(self.pod)
        for name in (self.first, self.second):
            world.controller.finish(name, 0, RESULT)

    def check(self, world: World) -> None:
        super().check(world)
        job = world.controller.job(self.second)
        assert job["metadata"]["annotations"][DEADLINE_ANNOTATION] == "7200"
        assert job["spec"]["activeDeadlineSeconds"] > 7200


class Cancelled(Training):
    """Somebody deletes the Job while it trains."""

    told = ("processing", "failed")
    jobs = 0

    def begin(self, world: World) -> None:
        world.controller.run_all(lambda _job, _attempt: Run(seconds=None))
        acked = world.published(BASIC_ACK, passed=True)
        name = self.send(world)
        wait_until(acked, 20)
        world.proxy.resume()
        wait_until(lambda: world.told_now() == [("processing",)], 20)
        batch = client.BatchV1Api(world.server.client(admin=True))
        batch.delete_namespaced_job(name, world.server.namespace, propagation_policy="Background")

    def check(self, world: World) -> None:
        world.server.wait_for(lambda: not world.server.all("jobs"), 20)
        assert world.receiver.patches[-1].json["failure_code"] == "JOB_DELETED"


class Refused(Training):
    """The message is wrong: it becomes a dead letter, unchanged, and the backend is told."""

    told = ("failed",)
    jobs = 0

    def begin(self, world: World) -> None:
        self.body = world.amqp.publish(message(num_epochs=501, image_paths=[DEAD_LETTER.decode()]))

    def check(self, world: World) -> None:
        super().check(world)
        # A kill between its confirm and the ack leaves it there twice: never less than once.
        assert {body for _, body in world.amqp.take_all(world.amqp.queues.dead)} == {self.body}
        assert {patch.json["failure_code"] for patch in world.receiver.patches} == {"INVALID_REQUEST"}


@dataclass(frozen=True)
class Point:
    name: str
    story: type[Training]
    hold: Callable[[World], Condition]
    also: Callable[[World], bool] = lambda _world: True
    """What must be visible of the side effect before, where the hold alone does not prove it."""


def asked(**what: Any) -> Callable[[World], Condition]:
    return lambda world: world.asked(**what)


def published(text: bytes, *, passed: bool = False) -> Callable[[World], Condition]:
    return lambda world: world.published(text, passed=passed)


def released_in_two_steps(world: World) -> Condition:
    """Somebody changes the Job while its end is told, so that the annotation is written by itself."""
    world.server.inject(Fault(409, verb="patch", resource="jobs", containing=b"finalizers"))
    return world.asked(verb="patch", resource="jobs", containing=b"finalizers")


def is_annotated(annotation: str) -> Callable[[World], bool]:
    return lambda world: any(
        annotation in (job["metadata"].get("annotations") or {}) for job in world.server.all("jobs")
    )


JOBS = {"verb": "patch", "resource": "jobs"}

POINTS = [
    Point("Lease not created", Training, asked(verb="create", resource="leases")),
    Point(
        "Lease created, its answer not seen", Training, asked(verb="create", resource="leases", after=True)
    ),
    Point("message delivered, Job not created", Training, asked(verb="create", resource="jobs")),
    Point("Job created, its answer not seen", Training, asked(verb="create", resource="jobs", after=True)),
    Point(
        "Job created, message not acked", Training, published(BASIC_ACK), lambda w: bool(w.server.all("jobs"))
    ),
    Point("message acked", Training, published(BASIC_ACK, passed=True)),
    Point("processing sent, not answered", Training, lambda world: world.told("processing")),
    Point("processing told, not written down", Training, asked(**JOBS, containing=WRITE_PROCESSING)),
    Point(
        "processing written down, the answer not seen",
        Training,
        asked(**JOBS, containing=WRITE_PROCESSING, after=True),
        is_annotated(PROCESSING_ANNOTATION),
    ),
    Point("end sent, not answered", Training, lambda world: world.told("completed")),
    Point("end told, not written down", Training, asked(**JOBS, containing=WRITE_TERMINAL)),
    Point(
        "end written down and Job released, the answer not seen",
        Training,
        asked(**JOBS, containing=WRITE_TERMINAL, after=True),
        is_annotated(TERMINAL_ANNOTATION),
    ),
    Point(
        "end written down, Job not released",
        Training,
        released_in_two_steps,
        is_annotated(TERMINAL_ANNOTATION),
    ),
    Point(
        "Job released, Event not written",
        Training,
        asked(verb="create", resource="events", containing=b"told completed"),
    ),
    Point("Job of somebody else not adopted", RunByHand, asked(**JOBS, containing=b"finalizers")),
    Point("Job adopted, the answer not seen", RunByHand, asked(**JOBS, containing=b"finalizers", after=True)),
    Point("style free, Job not started", TwoOfOneStyle, asked(**JOBS, containing=b'"suspend"')),
    Point(
        "Job started, the answer not seen",
        TwoOfOneStyle,
        asked(**JOBS, containing=b'"suspend"', after=True),
    ),
    Point("Job to give up, verdict not written", Stuck, asked(**JOBS, containing=WRITE_VERDICT)),
    Point(
        "verdict and deadline written, the answer not seen",
        Stuck,
        asked(**JOBS, containing=WRITE_VERDICT, after=True),
        is_annotated(VERDICT_ANNOTATION),
    ),
    Point("deadline of one that waits not moved", WithoutRoom, asked(**JOBS, containing=WRITE_DEADLINE)),
    Point(
        "deadline moved, the answer not seen",
        WithoutRoom,
        asked(**JOBS, containing=WRITE_DEADLINE, after=True),
        is_annotated(DEADLINE_ANNOTATION),
    ),
    Point("Job deleted, pods not stopped", Cancelled, asked(verb="deletecollection", resource="pods")),
    Point("pods stopped, verdict not written", Cancelled, asked(**JOBS, containing=WRITE_VERDICT)),
    Point(
        "verdict written, the answer not seen",
        Cancelled,
        asked(**JOBS, containing=WRITE_VERDICT, after=True),
        is_annotated(VERDICT_ANNOTATION),
    ),
    Point("refused, dead letter not sent", Refused, published(DEAD_LETTER)),
    Point(
        "dead letter sent, not confirmed",
        Refused,
        published(DEAD_LETTER, passed=True),
        lambda world: world.amqp.depth(world.amqp.queues.dead) == 1,
    ),
    Point("dead letter confirmed, notice not sent", Refused, published(NOTICE)),
    Point(
        "notice sent, not confirmed",
        Refused,
        published(NOTICE, passed=True),
        lambda world: world.amqp.depth(world.amqp.queues.dead) == 1,
    ),
    Point("notice confirmed, message not acked", Refused, published(BASIC_ACK)),
    Point("refusal sent, not answered", Refused, lambda world: world.told("failed")),
    Point("refusal told, notice not acked", Refused, lambda world: world.acked_after("failed")),
]


@pytest.fixture
def proxy(amqp_url: str) -> Any:
    parts = urlsplit(amqp_url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        yield proxy


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name.replace(" ", "-"))
def test_a_kill_between_two_side_effects_loses_and_doubles_nothing(
    tmp_path: Path,
    amqp: Amqp,
    proxy: TcpProxy,
    api_server: ApiServer,
    controller: JobController,
    receiver: Receiver,
    point: Point,
) -> None:
    world, story = World(tmp_path, amqp, proxy, api_server, controller, receiver), point.story()
    told, reached = [story.told] * story.messages, point.hold(world)
    with world.dispatcher as dispatcher:
        story.begin(world)
        wait_until(lambda: reached() and point.also(world), 20, point.name)
        dispatcher.kill()
        world.let_go()
        dispatcher.start()
        story.go_on(world)
        wait_until(lambda: world.told_now() == told, 20, f"told {told}")
        wait_until(lambda: not any(is_held(job) for job in api_server.all("jobs")), 20, "all are released")
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1), 20, "no message is left")
        wait_until(lambda: amqp.depth(amqp.queues.notices) == 0, 20, "no notice is left")
        wait_until(world.ends_with_no_message_left, 30, "all are acked")
    assert amqp.depth(amqp.queues.notices) == 0
    assert world.told_now() == told
    story.check(world)


def is_held(job: dict[str, Any]) -> bool:
    return names.FINALIZER in (job["metadata"].get("finalizers") or ())
