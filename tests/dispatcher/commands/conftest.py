"""Fixtures of the tests of what people type: the environment of a dispatcher."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tests.dispatcher.process import Dispatcher
from tests.dispatcher.support import Amqp, wait_until
from tests.parts.api_server import ApiServer
from tests.parts.receiver import Receiver


@pytest.fixture(autouse=True)
def settings(
    tmp_path: Path, amqp: Amqp, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a local dispatcher; main() sets up the logs, which are put back afterwards."""
    for name, value in {
        "AMQP_URL": amqp.url,
        "QUEUE": amqp.queues.work,
        "BACKEND_URL": receiver.url,
        "LOCAL_STATE_DIR": str(tmp_path / "state"),
        "MODELS_DIR": str(tmp_path / "models"),
        "LOG_FORMAT": "json",
    }.items():
        monkeypatch.setenv(name, value)
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    levels = {name: logging.getLogger(name).level for name in ("pika", "urllib3")}
    yield monkeypatch
    root.handlers, root.level = handlers, level
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def cluster(api_server: ApiServer, tmp_path: Path, settings: pytest.MonkeyPatch) -> ApiServer:
    settings.setenv("JOB_BACKEND", "kubernetes")
    kubeconfig = str(api_server.kubeconfig(tmp_path / "kubeconfig"))
    # The client reads KUBECONFIG once, when it is imported.
    settings.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", kubeconfig)
    return api_server


@pytest.fixture
def dispatcher(make_dispatcher: Callable[..., Dispatcher], amqp: Amqp) -> Iterator[Dispatcher]:
    """A dispatcher that runs; its `command` are those of a person beside it."""
    with make_dispatcher() as running:
        wait_until(lambda: amqp.state(amqp.queues.work)[1] == 1, 20, "it consumes")
        yield running
