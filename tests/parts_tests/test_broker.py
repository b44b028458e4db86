"""The broker node is real, private, and gone when it stops."""

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pika
import pika.exceptions
import pytest

from tests.parts.broker import RabbitNode
from tests.parts.proxy import TcpProxy

QUEUE = "parts.broker"


def publish(url: str, body: bytes) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", QUEUE, body, pika.BasicProperties(delivery_mode=2))


def take(url: str) -> bytes:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        _, _, body = connection.channel().basic_get(QUEUE, auto_ack=True)
        assert isinstance(body, bytes)
        return body


def processes_in(folder: Path) -> list[str]:
    """Return the numbers of the processes that work in a folder; a zombie works nowhere."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):  # another user's, or gone meanwhile
            if entry.readlink().is_relative_to(folder):
                found.append(entry.parent.name)
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    done = threading.Event()
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        done.wait(0.05)
    raise TimeoutError(f"the condition does not hold after {seconds} s")


def test_confirmed_message_survives_restart_and_kill(rabbit: RabbitNode) -> None:
    publish(rabbit.url, b"one")
    rabbit.restart()
    assert take(rabbit.url) == b"one"
    publish(rabbit.url, b"two")
    rabbit.kill()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        pika.BlockingConnection(pika.URLParameters(rabbit.url))
    rabbit.start()
    assert take(rabbit.url) == b"two"


@pytest.mark.usefixtures("rabbit")  # says what to do where no broker is installed
def test_node_in_the_foreground_leaves_no_process_when_its_starter_is_killed(tmp_path: Path) -> None:
    folder = (tmp_path / "node").resolve()
    command = [sys.executable, "-m", "tests.parts.broker", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        publish(url, b"one")
        assert processes_in(folder)
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes_in(folder))


def test_proxy_cuts_refuses_and_stalls(amqp_url: str) -> None:
    direct = pika.URLParameters(amqp_url)
    with TcpProxy(direct.host, direct.port) as proxy:
        through = pika.URLParameters(amqp_url)
        through.host, through.port = "127.0.0.1", proxy.port
        through.socket_timeout = through.blocked_connection_timeout = 5
        connection = pika.BlockingConnection(through)
        proxy.cut()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            connection.process_data_events(time_limit=5)
        proxy.refuse()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            pika.BlockingConnection(through)
        proxy.resume()
        connection = pika.BlockingConnection(through)
        proxy.stall()
        opened = threading.Event()

        def open_a_channel() -> None:
            connection.channel().close()
            opened.set()

        thread = threading.Thread(target=open_a_channel)
        thread.start()
        assert not opened.wait(0.3)
        proxy.resume()
        assert opened.wait(5)
        thread.join()
        connection.close()
