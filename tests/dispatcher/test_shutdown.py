"""SIGTERM ends the dispatcher inside ten seconds, whoever is away or says nothing."""

import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from job_contract.outcome import ExitCode
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, message, through, wait_until
from tests.parts.api_server import ApiServer
from tests.parts.job_controller import JobController, Run
from tests.parts.proxy import TcpProxy
from tests.parts.receiver import Answer, Receiver

SECONDS = 10


class Neighbours:
    """What the dispatcher talks to, each through a proxy."""

    def __init__(self, folder: Path, amqp: Amqp, server: ApiServer, receiver: Receiver) -> None:
        parts = urlsplit(amqp.url)
        self.rabbitmq = TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672)
        self.api_server = TcpProxy("127.0.0.1", server.port)
        kubeconfig = server.kubeconfig(folder / "kubeconfig")
        kubeconfig.write_text(kubeconfig.read_text().replace(f":{server.port}", f":{self.api_server.port}"))
        self.dispatcher = Dispatcher(
            folder,
            through(amqp.url, self.rabbitmq.port),
            amqp.queues,
            receiver,
            JOB_BACKEND="kubernetes",
            KUBECONFIG=str(kubeconfig),
            LEASE_NAME="relay",
            WEBHOOK_TIMEOUT_SECONDS="60",
        )

    def close(self) -> None:
        self.rabbitmq.close()
        self.api_server.close()

    def called(self, name: str) -> TcpProxy:
        return self.rabbitmq if name == "RabbitMQ" else self.api_server


@pytest.fixture
def neighbours(tmp_path: Path, amqp: Amqp, api_server: ApiServer, receiver: Receiver) -> Iterator[Neighbours]:
    neighbours = Neighbours(tmp_path, amqp, api_server, receiver)
    yield neighbours
    neighbours.close()


def stop_in_time(dispatcher: Dispatcher) -> None:
    began = time.monotonic()
    assert dispatcher.stop(timeout=30) == ExitCode.OK
    assert time.monotonic() - began < SECONDS


@pytest.mark.parametrize("name", ["API server", "RabbitMQ"])
def test_one_that_refuses_connections_does_not_hold_up_the_end(neighbours: Neighbours, name: str) -> None:
    neighbours.called(name).refuse()
    with neighbours.dispatcher as dispatcher:
        wait_until(lambda: "again_in" in dispatcher.log_text(), 20, "it has met the refusal")
        stop_in_time(dispatcher)


@pytest.mark.parametrize("name", ["API server", "RabbitMQ"])
def test_one_that_never_answers_does_not_hold_up_the_end(neighbours: Neighbours, name: str) -> None:
    proxy = neighbours.called(name)
    proxy.stall()
    with neighbours.dispatcher as dispatcher:
        wait_until(lambda: proxy.connections > 0, 20, "it is connected")
        stop_in_time(dispatcher)


@pytest.mark.parametrize(
    "names", [("API server",), ("RabbitMQ",), ("API server", "RabbitMQ")], ids=" and ".join
)
def test_what_falls_silent_at_work_does_not_hold_up_the_end(
    neighbours: Neighbours, amqp: Amqp, api_server: ApiServer, names: tuple[str, ...]
) -> None:
    with neighbours.dispatcher as dispatcher:
        amqp.publish(message())
        api_server.wait_for(lambda: api_server.all("jobs"), 20)
        wait_until(lambda: amqp.state(amqp.queues.work) == (0, 1))
        for name in names:
            neighbours.called(name).stall()
        amqp.publish_all([message(style) for style in range(12)])
        stop_in_time(dispatcher)
    # Whatever was delivered and not acked is there for the next one, and its Job is made once.
    for name in names:
        neighbours.called(name).cut()
    wait_until(lambda: amqp.depth(amqp.queues.work) + len(api_server.all("jobs")) >= 13)


def test_a_backend_that_never_answers_does_not_hold_up_the_end(
    neighbours: Neighbours, amqp: Amqp, controller: JobController, receiver: Receiver
) -> None:
    controller.run_all(lambda _job, _attempt: Run(seconds=None))
    receiver.answer = lambda _patch: Answer(hang=True)
    with neighbours.dispatcher as dispatcher:
        amqp.publish_all([message(style) for style in range(4)])
        receiver.wait_for(lambda patches: len(patches) == 4, 20)
        stop_in_time(dispatcher)
