"""Everything fails at random while messages flow; afterwards what must always hold is counted."""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
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


class Trouble:
    """Makes every kind of trouble again and again, in random order, in a thread until the block ends."""

    def __init__(self, server: ApiServer, proxy: TcpProxy, dice: random.Random) -> None:
        self._server = server
        self._proxy = proxy
        self._dice = dice
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._faults: list[tuple[str, Fault]] = []
        self._cuts: Counter[str] = Counter()
        """How many open connections each kind has ended."""
        self._kinds: dict[str, Callable[[], Fault | int | None]] = {
            "500": lambda: Fault(500, verb="create", resource="jobs"),
            "429": lambda: Fault(429, headers={"Retry-After": "1"}, verb="create", resource="jobs"),
            "503 without JSON": lambda: Fault(503, body=b"<html>", verb="patch"),
            "create cut off": lambda: Fault(reset=True, after=True, verb="create", resource="jobs", times=2),
            "patch cut off": lambda: Fault(reset=True, after=True, verb="patch", resource="jobs"),
            "500 though done": lambda: Fault(500, after=True, verb="patch", resource="jobs"),
            "409": lambda: Fault(409, verb="create", resource="jobs"),
            "no list": lambda: Fault(500, verb="list", resource="pods"),
            "410 to a list or watch": server.compact,
            "410 as a status": lambda: server.compact(gone_as_status=True),
            "410 in a watch": lambda: self._end_watches("expire"),
            "watch ends": lambda: self._end_watches("close"),
            "watch cut off": lambda: self._end_watches("reset"),
            "API server cut off": server.cut_connections,
            "RabbitMQ cut off": self._cut_rabbitmq,
        }

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._server.clear_faults()

    def _run(self) -> None:
        while True:
            for kind, make in self._dice.sample(list(self._kinds.items()), len(self._kinds)):
                if self._stop.wait(self._dice.uniform(0.05, 0.3)):
                    return
                made = make()
                if isinstance(made, Fault):
                    self._faults.append((kind, self._server.inject(made)))
                elif made is not None:
                    self._cuts[kind] += made

    def _end_watches(self, how: str) -> int:
        watches = self._once_open(lambda: self._server.open_watches)
        self._server.end_watches(how)
        return watches

    def _cut_rabbitmq(self) -> int:
        connections = self._once_open(lambda: self._proxy.connections)
        self._proxy.cut()
        return connections

    def _once_open(self, count: Callable[[], int]) -> int:
        """A dispatcher that starts has nothing open yet."""
        while not (number := count()) and not self._stop.wait(0.01):
            pass
        return number

    def check(self, receiver: Receiver) -> None:
        """Nothing was proved by trouble that did not strike."""
        struck = Counter(self._cuts)
        for kind, fault in self._faults:
            struck[kind] += fault.hits
        assert len(struck) == 12
        assert all(struck.values()), struck
        assert {request.status for request in self._server.requests} >= {0, 409, 429, 500, 503}
        assert {patch.answered for patch in receiver.patches} == {0, 200, 401, 503}


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


def wait_for_the_moment(dice: random.Random, receiver: Receiver, *, into_its_start: bool) -> None:
    """Wait for a random number of further PATCHes, so that a slow machine is killed at work too."""
    until = time.monotonic() + (dice.uniform(0.2, 1.2) if into_its_start else 5)
    seen, more = len(receiver.patches), dice.randint(1, 25)
    wait_until(lambda: time.monotonic() > until or len(receiver.patches) >= seen + more)


def good_and_bad_messages() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both kinds by task_id."""
    good, bad = {}, {}
    for number in range(MESSAGES):
        body = message(style_id=number % STYLES, num_epochs=10)
        if number % 15 == 7:
            body["num_epochs"] = 501
            bad[body["task_id"]] = body
        else:
            good[body["task_id"]] = body
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
    good, bad = good_and_bad_messages()
    bodies = [*good.values(), *bad.values()]
    bodies += dice.sample(list(good.values()), 10)  # published twice: the same identity
    dice.shuffle(bodies)
    parts = urlsplit(amqp.url)
    with TcpProxy(parts.hostname or "", parts.port or 5672) as proxy:
        dispatcher = Dispatcher(
            tmp_path,
            through(amqp.url, proxy.port),
            amqp.queues,
            receiver,
            JOB_BACKEND="kubernetes",
            KUBECONFIG=str(api_server.kubeconfig(tmp_path / "kubeconfig")),
        )
        trouble = Trouble(api_server, proxy, dice)
        with dispatcher:
            with trouble:
                for number in range(KILLS):
                    amqp.publish_all(bodies[number::KILLS])
                    wait_for_the_moment(dice, receiver, into_its_start=number % 4 == 3)
                    assert dispatcher.running, "it ended by itself"
                    dispatcher.kill()
                    dispatcher.start()
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
    trouble.check(receiver)


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
