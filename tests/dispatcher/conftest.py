"""Fixtures of the dispatcher's tests; the parts they stand on are in tests/conftest.py."""

import uuid
from collections.abc import Iterator

import pytest

from dispatcher.queues import Queues
from tests.dispatcher.support import Amqp


@pytest.fixture
def queues() -> Queues:
    """Queues that no other test has."""
    return Queues(f"model_training-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def amqp(amqp_url: str, queues: Queues) -> Iterator[Amqp]:
    """The other end of `queues`, which are gone afterwards."""
    amqp = Amqp(amqp_url, queues)
    yield amqp
    amqp.delete(queues.work, queues.dead, queues.notices)
