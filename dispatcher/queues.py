"""The queues and what people do with them by hand: publish a request, put dead letters back."""

import hashlib
from dataclasses import dataclass
from typing import Final

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.exchange_type import ExchangeType

from dispatcher.errors import BrokerUnavailableError
from dispatcher.headers import Properties
from job_contract.redaction import redact

REASON_HEADER: Final = "x-refusal-reason"
REFUSED_AT_HEADER: Final = "x-refused-at"
_ACCESS_REFUSED: Final = 403


@dataclass(frozen=True)
class Queues:
    """The queues that belong to one work queue; all are declared plain durable."""

    work: str

    @property
    def dead(self) -> str:
        return f"{self.work}.dead"

    @property
    def notices(self) -> str:
        """Refusals that the backend has not been told of yet."""
        return f"{self.work}.notices"

    @property
    def refusals(self) -> str:
        """An exchange that tells whoever listens at that moment; nothing is kept there."""
        return f"{self.work}.refusals"

    def declare(self, channel: BlockingChannel) -> None:
        """Declare the three queues.

        Raises:
            BrokerUnavailableError: the user may not; RabbitMQ has closed the channel.
        """
        for queue in (self.work, self.dead, self.notices):
            try:
                # Exactly as publishers declare it: other arguments are a 406 that breaks them.
                channel.queue_declare(queue, durable=True)
            except ChannelClosedByBroker as error:
                if error.reply_code != _ACCESS_REFUSED:
                    raise
                raise BrokerUnavailableError(
                    f"the user in AMQP_URL may not configure the queue {queue}: {error_text(error)}"
                ) from error

    def declare_refusals(self, channel: BlockingChannel) -> None:
        """Declare the exchange, which a user who may use the queues alone can do without."""
        channel.exchange_declare(self.refusals, ExchangeType.direct, durable=True)

    def depth(self, channel: BlockingChannel) -> int:
        """Return how many requests wait; declares the queue when it is gone."""
        return int(channel.queue_declare(self.work, durable=True).method.message_count)


def refusal_key(body: bytes) -> str:
    """Return the routing key under which the refusal of a message is told."""
    return hashlib.sha256(body).hexdigest()


def connect(url: str) -> BlockingConnection:
    """Open a connection.

    Raises:
        BrokerUnavailableError: with a sentence that names AMQP_URL.
    """
    try:
        parameters = pika.URLParameters(url)
        parameters.heartbeat = 30 if parameters.heartbeat is None else parameters.heartbeat
        parameters.blocked_connection_timeout = 60
        parameters.socket_timeout = parameters.stack_timeout = 15
        pika.spec.props[Properties.INDEX] = Properties  # what pika makes of the properties that arrive
        return pika.BlockingConnection(parameters)
    except (AMQPError, OSError, ValueError, LookupError) as error:
        raise BrokerUnavailableError(
            f"RabbitMQ at AMQP_URL cannot be reached: {error_text(error)}"
        ) from error


def publish(url: str, queue: str, body: bytes, message_id: str | None = None) -> None:
    """Publish one persistent message, confirmed.

    Raises:
        BrokerUnavailableError: the message is not safely in the queue.
    """
    connection = connect(url)
    try:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True)
        channel.confirm_delivery()
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=pika.DeliveryMode.Persistent.value,
            message_id=message_id,
        )
        channel.basic_publish("", queue, body, properties, mandatory=True)
    except AMQPError as error:
        raise BrokerUnavailableError(f"RabbitMQ did not take the message: {error_text(error)}") from error
    finally:
        if connection.is_open:
            connection.close()


@dataclass(frozen=True)
class Counts:
    waiting: int
    """Requests in the work queue."""
    consumers: int
    dead: int


def counts(url: str, queues: Queues) -> Counts:
    """Count what is in the queues, which are declared where they are missing.

    Raises:
        BrokerUnavailableError: RabbitMQ cannot be reached, or does not let the user in AMQP_URL do that.
    """
    connection = connect(url)
    try:
        channel = connection.channel()
        queues.declare(channel)
        work, dead = (
            channel.queue_declare(queue, durable=True, passive=True).method
            for queue in (queues.work, queues.dead)
        )
        return Counts(work.message_count, work.consumer_count, dead.message_count)
    except AMQPError as error:
        raise BrokerUnavailableError(error_text(error)) from error
    finally:
        if connection.is_open:
            connection.close()


def redrive(url: str, queues: Queues) -> int:
    """Put the dead letters that are there now back to the work queue; return how many.

    Each is published and confirmed before it leaves the dead letters, so none is lost; a crash
    between the two leaves one in both, and its Job is still made once.
    """
    connection = connect(url)
    moved = 0
    try:
        channel = connection.channel()
        queues.declare(channel)
        channel.confirm_delivery()
        waiting = channel.queue_declare(queues.dead, durable=True, passive=True).method.message_count
        for _ in range(waiting):
            method, properties, body = channel.basic_get(queues.dead)
            if method is None or properties is None or body is None:
                break
            for header in (REASON_HEADER, REFUSED_AT_HEADER):
                (properties.headers or {}).pop(header, None)
            channel.basic_publish("", queues.work, body, properties, mandatory=True)
            channel.basic_ack(method.delivery_tag)
            moved += 1
    except AMQPError as error:
        raise BrokerUnavailableError(
            f"{moved} dead letters moved, then RabbitMQ failed: {error_text(error)}"
        ) from error
    finally:
        if connection.is_open:
            connection.close()
    return moved


def error_text(error: BaseException | None) -> str:
    """Return what an error says, fit for a log; many of pika's say nothing but their name."""
    return redact(str(error) or repr(error))
