"""What the consumer publishes before it acks: dead letters, notices, and messages put back afresh."""

from datetime import UTC, datetime
from typing import Any, Final

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker

from dispatcher.queues import REASON_HEADER, REFUSED_AT_HEADER, Queues, error_text, refusal_key

MOST_RETURNS: Final = 10
"""After so many a message is put back afresh. Quorum queues drop it after 20 (RabbitMQ 4.0 and later); the
rest is for connections that break, which count as well."""

_RETURNS_HEADER: Final = "x-delivery-count"
"""Set by quorum queues on what they deliver: how often it came back. 4.3 leaves nacks out of it, and of what
it holds against its limit; other queues set none."""
_NOT_PUBLISHED: Final = frozenset({_RETURNS_HEADER, "x-acquired-count", "CC", "BCC"})
"""The counts of one stay in a queue, and further queues that the message went to when it was sent."""


def comes_back_too_often(properties: Any) -> bool:
    """Whether RabbitMQ might soon drop a message of these properties for having come back so often."""
    returns = (properties.headers or {}).get(_RETURNS_HEADER)
    return isinstance(returns, int) and returns >= MOST_RETURNS


class Publisher:
    """Publishes with confirms, on the connection's thread; any failure raises, and then nothing is acked."""

    def __init__(self, connection: BlockingConnection, queues: Queues) -> None:
        self._queues = queues
        self._log = structlog.get_logger("broker")
        self._channel = connection.channel()
        self._channel.confirm_delivery()
        # What is forbidden closes its channel, so this has one of its own.
        self._listeners: BlockingChannel | None = connection.channel()
        self._listeners.confirm_delivery()
        try:
            queues.declare_refusals(self._listeners)
        except ChannelClosedByBroker as error:
            self._nobody_listens(error)

    def put_back(self, properties: Any, body: bytes) -> None:
        """Put a copy behind the other messages; a time to live begins again."""
        self._publish(self._queues.work, properties, body)

    def refuse(self, properties: Any, body: bytes, reason: str, notice: bytes | None) -> None:
        """Publish a dead letter, the notice if there is one, and tell whoever listens."""
        headers = dict(properties.headers or {})
        headers[REASON_HEADER] = reason[:2000]
        headers[REFUSED_AT_HEADER] = datetime.now(UTC).isoformat(timespec="seconds")
        properties.headers = headers
        properties.expiration = None  # a dead letter waits for a person
        self._publish(self._queues.dead, properties, body)
        if notice:
            self.notify(notice)
        self._tell_listeners(body, reason)

    def notify(self, notice: bytes) -> None:
        """Publish a refusal that the backend is to be told of."""
        self._publish(self._queues.notices, pika.BasicProperties(), notice)

    def _publish(self, queue: str, properties: Any, body: bytes) -> None:
        headers = properties.headers or {}
        properties.headers = {name: value for name, value in headers.items() if name not in _NOT_PUBLISHED}
        properties.delivery_mode = pika.DeliveryMode.Persistent.value
        properties.user_id = None  # RabbitMQ takes only our own there, and closes the channel for another
        self._channel.basic_publish("", queue, body, properties, mandatory=True)

    def _tell_listeners(self, body: bytes, reason: str) -> None:
        if self._listeners is None:
            return
        try:
            self._listeners.basic_publish(
                self._queues.refusals, refusal_key(body), reason.encode(errors="replace")
            )
        except ChannelClosedByBroker as error:
            self._nobody_listens(error)

    def _nobody_listens(self, error: ChannelClosedByBroker) -> None:
        self._listeners = None
        self._log.warning(
            f"`submit --wait` will not hear of refusals: let the user in AMQP_URL configure and write "
            f"{self._queues.refusals}",
            error=error_text(error),
        )
