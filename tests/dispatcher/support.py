"""What several test files of the dispatcher share: waiting for conditions, a queue's other end, messages."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pika

from dispatcher.queues import Queues

T = TypeVar("T")


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
