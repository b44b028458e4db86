"""Everything fails at random while messages flow; afterwards what must always hold is counted."""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import standardwebhooks

from job_contract import names
from tests.dispatcher.process import SECRET, Dispatcher
from tests.dispatcher.support import Amqp, message, through, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController, Run
from tests.parts.proxy import TcpProxy
from tests.parts.receiver import Answer, Patch, Receiver

MESSAGES = 150
STYLES = 40
KILLS = 15
BAD_IMAGE = '{"failure_code":"INVALID_IMAGES","failure_reason":"b.png is truncated; send it again."}'
TERMINAL = ("completed", "failed")


class Trainings:
    """Decides how each pod ends, and watches that no two of a style run at once."""

    def __init__(self, server: ApiServer, dice: random.Random) -> None:
        self._server = server
        self._dice = dice
        self.at_once: list[str] = []

    def __call__(self, job: dict[str, Any], attempt: int) -> Run:
        style = job["metadata"]["labels"][names.LABEL_STYLE_ID]
        running = [
            pod["metadata"]["name"]
            for pod in self._server.all("pods")
            if pod["metadata"]["labels"][names.LABEL_STYLE_ID] == style
            and pod["status"].get("phase") == "Running"
        ]
        if running:
            self.at_once.append(f"{job['metadata']['name']} beside {running}")
        seconds = self._dice.uniform(0.0, 0.3)
        lot = self._dice.random()
        if lot < 0.1:
            return Run(exit_code=65, message=BAD_IMAGE, seconds=seconds)
        if lot < 0.3 and attempt < 3:
            return Run(exit_code=70, seconds=seconds)
        return Run(seconds=seconds)


def make_trouble(
    stop: threading.Event, server: ApiServer, proxy: TcpProxy, receiver: Receiver, dice: random.Random
) -> None:
    troubles: list[Callable[[], object]] = [
        lambda: server.inject(Fault(500, times=2)),
        lambda: server.inject(Fault(429, headers={"Retry-After": "1"}, verb="create", resource="jobs")),
        lambda: server.inject(Fault(503, body=b"<html>", verb="patch")),
        lambda: server.inject(Fault(reset=True, after=True, verb="create", resource="jobs", times=2)),
        lambda: server.inject(Fault(reset=True, after=True, verb="patch", resource="jobs")),
        lambda: server.inject(Fault(500, after=True, verb="patch", resource="jobs")),
        lambda: server.inject(Fault(409, verb="create", resource="jobs")),
        lambda: server.inject(Fault(500, verb="list", resource="pods")),
        server.compact,
        lambda: server.compact(gone_as_status=True),
        lambda: server.end_watches("close"),
        lambda: server.end_watches("reset"),
        lambda: server.end_watches("expire"),
        server.cut_connections,
        proxy.cut,
    ]
    while not stop.wait(dice.uniform(0.05, 0.3)):
        dice.choice(troubles)()


def answers(dice: random.Random) -> Callable[[Patch], Answer]:
    def answer(_patch: Patch) -> Answer:
        lot = dice.random()
        if lot < 0.08:
            return Answer(503, {"Retry-After": "0"})
        if lot < 0.12:
            return Answer(reset=True)
        if lot < 0.15:
            return Answer(401)
        return Answer(delay=0.02 if lot < 0.3 else 0)

    return answer


def publish_with_repetitions(amqp: Amqp, dice: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publish good and bad messages, some twice; return both kinds by task_id."""
    good, bad = {}, {}
    for number in range(MESSAGES):
        body = message(style_id=number % STYLES, num_epochs=10)
        if number % 15 == 7:
            body["num_epochs"] = 501
            bad[body["task_id"]] = body
        else:
            good[body["task_id"]] = body
    bodies = [*good.values(), *bad.values()]
    bodies += dice.sample(list(good.values()), 10)  # published twice: the same identity
    dice.shuffle(bodies)
    amqp.publish_all(bodies)
    return good, bad


def test_nothing_is_lost_or_told_twice_or_out_of_order_whatever_fails(
    tmp_path: Path, amqp: Amqp, api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    seed = random.randrange(2**32)
    print(f"chaos seed {seed}")
    dice = random.Random(seed)
    trainings = Trainings(api_server, dice)
    controller.run_all(trainings)
    receiver.answer = answers(dice)
    parts = urlsplit(amqp.url)
    stop = threading.Event()
    with TcpProxy(parts.hostname or "", parts.port or 5672) as proxy:
        dispatcher = Dispatcher(
            tmp_path,
            through(amqp.url, proxy.port),
            amqp.queues,
            receiver,
            JOB_BACKEND="kubernetes",
            KUBECONFIG=str(api_server.kubeconfig(tmp_path / "kubeconfig")),
        )
        trouble = threading.Thread(target=make_trouble, args=(stop, api_server, proxy, receiver, dice))
        with dispatcher:
            good, bad = publish_with_repetitions(amqp, dice)
            trouble.start()
            try:
                for _ in range(KILLS):
                    # Into its start, into the thick of it, and near the end.
                    pause = time.monotonic() + dice.choice([0.5, 1.0, 1.2, 1.5, 2.0])
                    wait_until(lambda until=pause: time.monotonic() > until)  # type: ignore[misc]
                    assert dispatcher.running, "it ended by itself"
                    dispatcher.kill()
                    dispatcher.start()
            finally:
                stop.set()
                trouble.join()
            api_server.clear_faults()
            receiver.answer = None
            wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1), 30, "the queue is empty")
            wait_until(lambda: amqp.depth(amqp.queues.notices) == 0, 30, "no notice is left")
            wait_until(lambda: len(api_server.all("jobs")) >= len(good), 30, "every Job is there")
            wait_until(lambda: not any(is_held(job) for job in api_server.all("jobs")), 40, "all released")
            assert dispatcher.stop() == 0
    assert amqp.depth(amqp.queues.work) == 0  # nothing was held unacked either

    check_jobs(api_server, good)
    check_dead_letters(amqp, bad)
    check_statuses(api_server, receiver, good, bad)
    assert trainings.at_once == []


def is_held(job: dict[str, Any]) -> bool:
    return names.FINALIZER in (job["metadata"].get("finalizers") or ())


def request_in(job: dict[str, Any]) -> dict[str, Any]:
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    return dict(json.loads(annotations[names.REQUEST_ANNOTATION]))


def check_jobs(api_server: ApiServer, good: dict[str, Any]) -> None:
    tasks = Counter(request_in(job)["task_id"] for job in api_server.all("jobs"))
    assert tasks == Counter(dict.fromkeys(good, 1))


def check_dead_letters(amqp: Amqp, bad: dict[str, Any]) -> None:
    """Each bad message is there, unchanged; a kill between confirm and ack may leave it twice."""
    dead = [json.loads(body) for _, body in amqp.take_all(amqp.queues.dead)]
    assert {body["task_id"]: body for body in dead} == bad


def check_statuses(
    api_server: ApiServer, receiver: Receiver, good: dict[str, Any], bad: dict[str, Any]
) -> None:
    verifier = standardwebhooks.Webhook(SECRET)
    delivered: defaultdict[str, list[Patch]] = defaultdict(list)
    for patch in receiver.patches:
        verifier.verify(patch.body.decode(), patch.headers)
        if patch.answered == 200:
            delivered[patch.json["task_id"]].append(patch)
    assert delivered.keys() == good.keys() | bad.keys()
    completed = {
        request_in(job)["task_id"]: any(
            condition["type"] == "Complete" and condition["status"] == "True"
            for condition in job["status"]["conditions"]
        )
        for job in api_server.all("jobs")
    }
    for task, patches in delivered.items():
        statuses = [str(patch.status) for patch in patches]
        ends = [patch for patch in patches if patch.status in TERMINAL]
        first_end = statuses.index(str(ends[0].status))
        # A repetition after a kill is the same PATCH under the same id; nothing else follows the end.
        assert len({(patch.headers["webhook-id"], patch.body) for patch in ends}) == 1, (task, statuses)
        assert set(statuses[first_end:]) == {ends[0].status}, (task, statuses)
        if task in bad:
            assert set(statuses) == {"failed"}
        else:
            assert statuses[0] == "processing", (task, statuses)
            assert (ends[0].status == "completed") == completed[task], (task, statuses)
