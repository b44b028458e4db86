"""Fixtures of the dispatcher's tests; the parts they stand on are in tests/conftest.py."""

import json
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dispatcher.queues import Queues
from tests.dispatcher.local_machine import processes_of
from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, wait_until
from tests.parts.api_server import ApiServer
from tests.parts.broker import RabbitNode
from tests.parts.proxy import TcpProxy
from tests.parts.receiver import Receiver


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


@pytest.fixture
def proxy(amqp_url: str) -> Iterator[TcpProxy]:
    parts = urlsplit(amqp_url)
    with TcpProxy(parts.hostname or "127.0.0.1", parts.port or 5672) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def strict_rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A broker with users who may do little, and a virtual host where a durable queue is a quorum queue."""
    queues = r"model_training(\.dead|\.notices)?"
    with_exchange = r"model_training(\.dead|\.notices|\.refusals)?"
    rights = {
        "guest": (".*", ".*", ".*"),
        "backend": (".*", ".*", ".*"),
        "limited": (f"^{queues}$", rf"^(amq\.default|{queues})$", f"^{queues}$"),
        "half-limited": (".*", rf"^(amq\.default|{queues})$", ".*"),
        "documented": (f"^{with_exchange}$", rf"^(amq\.default|{with_exchange})$", f"^{queues}$"),
        "without-notices": (r"^model_training(\.dead)?$", ".*", ".*"),
    }
    definitions = {
        "users": [{"name": user, "password": user, "tags": ""} for user in rights],
        "vhosts": [{"name": "/"}, {"name": "quorum", "metadata": {"default_queue_type": "quorum"}}],
        "permissions": [
            {"user": user, "vhost": vhost, "configure": configure, "write": write, "read": read}
            for user, (configure, write, read) in rights.items()
            for vhost in ("/", "quorum")
        ],
        # What RabbitMQ 4 does by itself.
        "policies": [
            {"vhost": "quorum", "name": "limit", "pattern": ".*", "definition": {"delivery-limit": 20}}
        ],
    }
    folder = tmp_path_factory.mktemp("strict-rabbit")
    (folder / "definitions.json").write_text(json.dumps(definitions))
    with RabbitNode(folder / "node", {"load_definitions": str(folder / "definitions.json")}) as node:
        yield node


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a full queue did not take is tried again at once, nearly."""
    for module in ("broker", "dead_letters", "notice_queue"):
        monkeypatch.setattr(f"dispatcher.{module}.FULL_SECONDS", 0.2)


@pytest.fixture
def no_process_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    wait_until(lambda: not processes_of(tmp_path), 15, "no process of the test is left")


@pytest.fixture
def make_dispatcher(
    tmp_path: Path, amqp: Amqp, receiver: Receiver, api_server: ApiServer
) -> Callable[..., Dispatcher]:
    """Takes further settings for a dispatcher on the tests' API server."""
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    return partial(
        Dispatcher, tmp_path, amqp.url, amqp.queues, receiver, JOB_BACKEND="kubernetes", KUBECONFIG=kubeconfig
    )
