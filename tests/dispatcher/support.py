"""What several test files of the dispatcher share: waiting for conditions, both ends of a queue, messages."""

import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pika

from dispatcher.broker import Broker, Work
from dispatcher.queues import Queues
from dispatcher.verdict import Verdict

T = TypeVar("T")
Handle = Callable[[bytes, str | None], Verdict]


def wait_until(condition: Callable[[], T], timeout: float = 15, what: str = "") -> T:
    """Return condition's first true value.

    Raises:
        TimeoutError: there is none after timeout seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {timeout} s: {what or condition}")
        time.sleep(0.01)
    return value


def message(style_id: int | str = 42, **fields: Any) -> dict[str, Any]:
    return {"style_id": style_id, "image_paths": ["/data/a.jpg"], "task_id": uuid.uuid4().hex, **fields}


def through(url: str, port: int) -> str:
    """Return an AMQP URL with another port on loopback: that of a proxy."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{port}"))


class Amqp:
    """A publisher that nobody here wrote: plain pika, plain durable queues."""

    def __init__(self, url: str, queues: Queues) -> None:
        self.url = url
        self.queues = queues

    def publish(self, body: bytes | dict[str, Any], **properties: Any) -> bytes:
        encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.queues.work, durable=True)
            channel.confirm_delivery()
            channel.basic_publish("", self.queues.work, encoded, pika.BasicProperties(**properties))
        return encoded

    def publish_all(self, bodies: list[dict[str, Any]]) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(self.queues.work, durable=True)
            channel.confirm_delivery()
            for body in bodies:
                channel.basic_publish("", self.queues.work, json.dumps(body).encode())

    def take(self, queue: str) -> tuple[Any, bytes] | None:
        """Take a message out of a queue; None when it is empty."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            method, properties, body = connection.channel().basic_get(queue, auto_ack=True)
            return None if method is None else (properties, body)

    def take_all(self, queue: str) -> list[tuple[Any, bytes]]:
        taken = []
        while (found := self.take(queue)) is not None:
            taken.append(found)
        return taken

    def state(self, queue: str) -> tuple[int, int]:
        """Return how many messages are ready, and how many consumers there are; (-1, 0) without the queue."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            try:
                declared = connection.channel().queue_declare(queue, durable=True, passive=True).method
            except pika.exceptions.ChannelClosedByBroker:
                return (-1, 0)
            return (declared.message_count, declared.consumer_count)

    def depth(self, queue: str) -> int:
        return self.state(queue)[0]

    def delete(self, *queues: str) -> None:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for queue in queues:
                channel.queue_delete(queue)


def is_empty(amqp: Amqp, queue: str | None = None) -> bool:
    return amqp.depth(queue or amqp.queues.work) == 0


@contextmanager
def consuming(
    url: str,
    queues: Queues,
    handle: Handle,
    send_notice: Callable[[bytes], float | None] = lambda _body: None,
    buried: Callable[[], None] = lambda: None,
    handlers: int = 8,
) -> Iterator[Broker]:
    """Run a broker's consumption until the block ends."""
    broker = Broker(url, queues, Work(handle, send_notice, buried=buried), handlers)
    stop = threading.Event()
    thread = threading.Thread(target=broker.run, args=(stop,))
    thread.start()
    try:
        yield broker
    finally:
        stop.set()
        thread.join(15)
        assert not thread.is_alive()


def resumed(broker: Broker) -> bool:
    broker.resume()
    return True


def get(port: int, path: str) -> tuple[int, str]:
    """Return status and body of an answer on loopback; status 0 where there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""
