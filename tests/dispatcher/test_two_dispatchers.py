"""Two dispatchers that share a Lease: both take requests, one relays, no style is trained twice at once."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from job_contract import names
from tests.dispatcher.cluster import RESULT, batch_api, name_of, new_job, told, watching
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, message, wait_until
from tests.parts.api_server import ApiServer, Fault
from tests.parts.job_controller import JobController, Run
from tests.parts.receiver import Receiver

STYLES = 3


class Trainings:
    """Lets every training run for a while, and notes what runs beside another of its style."""

    def __init__(self, server: ApiServer, seconds: float) -> None:
        self._server = server
        self._seconds = seconds
        self.side_by_side: list[str] = []

    def __call__(self, job: dict[str, Any], _attempt: int) -> Run:
        style = job["metadata"]["labels"][names.LABEL_STYLE_ID]
        beside = [
            pod["metadata"]["name"]
            for pod in self._server.all("pods")
            if pod["metadata"]["labels"][names.LABEL_STYLE_ID] == style
            and pod["status"].get("phase") == "Running"
        ]
        if beside:
            self.side_by_side.append(f"{job['metadata']['name']} beside {beside}")
        return Run(seconds=self._seconds)


class Pair:
    """Two dispatcher processes of one Deployment."""

    def __init__(self, dispatchers: list[Dispatcher], amqp: Amqp, receiver: Receiver) -> None:
        self.first, self.second = dispatchers
        self._amqp = amqp
        self._receiver = receiver
        self._sent: Counter[int] = Counter()

    def send(self, styles: list[int]) -> None:
        self._sent.update(styles)
        self._amqp.publish_all([message(style) for style in styles])

    def wait_for_all(self) -> None:
        wait_until(
            lambda: all(told(self._receiver, s).count("completed") == n for s, n in self._sent.items()),
            40,
            "every training is told as completed",
        )


@pytest.fixture
def pair(tmp_path: Path, amqp: Amqp, api_server: ApiServer, receiver: Receiver) -> Iterator[Pair]:
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    settings = {"JOB_BACKEND": "kubernetes", "KUBECONFIG": kubeconfig, "LEASE_NAME": "relay"}
    with ExitStack() as stack:
        dispatchers = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            settings["TMPDIR"] = str(tmp_path / name)
            dispatchers.append(
                stack.enter_context(Dispatcher(tmp_path / name, amqp.url, amqp.queues, receiver, **settings))
            )
        wait_until(lambda: amqp.state(amqp.queues.work)[1] == 2, 30, what="both consume")
        yield Pair(dispatchers, amqp, receiver)


def test_no_two_trainings_of_a_style_run_at_once_though_two_dispatchers_take_requests(
    pair: Pair, api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """Each decided by its own memory once, and a watch shows late what the other has created."""
    trainings = Trainings(api_server, seconds=0.15)
    controller.run_all(trainings)
    pair.send([number % STYLES for number in range(45)])
    wait_until(lambda: sum(told(receiver, style).count("completed") for style in range(STYLES)) >= 10)
    assert pair.first.stop() == 0  # whichever relays: the other goes on, or takes over
    pair.first.start()
    pair.send([number % STYLES for number in range(15)])
    pair.wait_for_all()
    assert trainings.side_by_side == []
    assert both_took_requests(pair)
    statuses: defaultdict[str, list[str | None]] = defaultdict(list)
    for patch in receiver.patches:
        statuses[patch.json["task_id"]].append(patch.status)
    assert list(statuses.values()) == [["processing", "completed"]] * 60


def both_took_requests(pair: Pair) -> bool:
    return all("Job created" in dispatcher.log_text() for dispatcher in (pair.first, pair.second))


def test_one_of_two_dispatchers_relays_and_the_other_takes_over(
    pair: Pair, controller: JobController, receiver: Receiver
) -> None:
    controller.run_all(lambda _job, _attempt: Run(seconds=0.2))
    pair.send(list(range(10)))
    pair.wait_for_all()
    assert pair.first.stop() == 0
    pair.send(list(range(10, 20)))
    pair.wait_for_all()
    assert pair.second.stop() == 0
    identities = [patch.headers["webhook-id"] for patch in receiver.patches]
    assert len(identities) == len(set(identities)) == 40


def test_no_end_is_told_by_a_dispatcher_that_lost_the_lease_while_it_wrote_on_the_job(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """The hold was asked for once, and a slow API server then used it up before the PATCH."""
    job = new_job(receiver)
    api_server.inject(Fault(500, verb="patch", resource="jobs", containing=b"relayed-processing"))
    batch_api(api_server).create_namespaced_job(api_server.namespace, job)
    controller.finish(name_of(job), 0, RESULT)
    # The second time that `processing` is written on the Job takes longer than the hold lasts.
    with watching(
        api_server.client(), api_server.namespace, may_relay=lambda: api_server.count("patch", "jobs") < 2
    ):
        wait_until(lambda: api_server.count("patch", "jobs") == 2)
    assert told(receiver) == ["processing"]


def test_no_progress_is_told_by_a_dispatcher_that_lost_the_lease_while_it_read_the_log(
    api_server: ApiServer, controller: JobController, receiver: Receiver
) -> None:
    """Whoever has it then may have told the end already."""
    job = new_job(receiver)
    batch_api(api_server).create_namespaced_job(api_server.namespace, job)
    api_server.write_log(controller.start_pod(name_of(job)), "epoch 1/100  loss 0.5  ETA 0:01:30\n")
    with watching(
        api_server.client(),
        api_server.namespace,
        progress=0.05,
        may_relay=lambda: api_server.count("get", "pods/log") == 0,
    ):
        wait_until(lambda: api_server.count("get", "pods/log") > 0)
    assert [patch.status for patch in receiver.patches] == ["processing"]
