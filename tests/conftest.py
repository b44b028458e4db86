"""Fixtures for the parts in tests/parts: a broker for the session, the rest fresh for each test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parts.api_server import ApiServer
from tests.parts.broker import RabbitNode, RabbitNotFoundError
from tests.parts.job_controller import JobController
from tests.parts.receiver import Receiver


def _without_broker(reason: str) -> None:
    """Skip on a person's machine; fail where a skip would hide that nothing was tested."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A private RabbitMQ node of the session: queues of other tests are in it. Start what you stop."""
    node = RabbitNode(tmp_path_factory.mktemp("rabbit"))
    try:
        node.start()
    except RabbitNotFoundError as error:
        _without_broker(str(error))
    yield node
    node.stop()


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """URL of the broker in AMQP_URL, else of a private one; take queue names that nobody else has."""
    url = os.environ.get("AMQP_URL")
    if url:
        return url
    node: RabbitNode = request.getfixturevalue("rabbit")
    return node.url


@pytest.fixture
def own_rabbit(tmp_path: Path) -> Iterator[RabbitNode]:
    """A RabbitMQ node of this test alone, which may stop, kill and restart it; it takes 3 s to start."""
    node = RabbitNode(tmp_path / "rabbit")
    try:
        node.start()
    except RabbitNotFoundError as error:
        _without_broker(str(error))
    yield node
    node.stop()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A backend that takes the token "backend-token"."""
    with Receiver("backend-token") as receiver:
        yield receiver


@pytest.fixture
def api_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def controller(api_server: ApiServer) -> Iterator[JobController]:
    """Plays Job controller and kubelet of api_server when a test tells it to."""
    with JobController(api_server) as controller:
        yield controller
