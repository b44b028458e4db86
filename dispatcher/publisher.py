"""What the consumer publishes before it acks: dead letters, notices, and messages put back afresh."""

import copy
import time
from datetime import UTC, datetime
from typing import Any, Final

import pika
import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import ChannelClosedByBroker, NackError, UnroutableError

from dispatcher.errors import MAX_REASON
from dispatcher.queues import REASON_HEADER, REFUSED_AT_HEADER, Queues, error_text, refusal_key

MOST_RETURNS: Final = 10
"""After so many a message is put back afresh. Quorum queues drop it after 20 (RabbitMQ 4.0 and later); the
rest is for connections that break, which count as well."""

FULL_SECONDS: Final = 10.0
"""After so long what a full queue did not take is tried again."""

_RETURNS_HEADER: Final = "x-delivery-count"
"""Set by quorum queues on what they deliver: how often it came back. 4.3 leaves nacks out of it, and of what
it holds against its limit; other queues set none."""
_NOT_PUBLISHED: Final = frozenset({_RETURNS_HEADER, "x-acquired-count", "CC", "BCC"})
"""Counts belong to one stay in a queue; CC and BCC would send a copy to further queues once more."""
_REFUSED_HERE_HEADER: Final = "x-refused-here"
"""Of a message whose dead letter is written, and whose notice is not: no dead letter ever has it."""


def comes_back_too_often(properties: Any) -> bool:
    """Whether RabbitMQ might soon drop a message of these properties for having come back so often."""
    returns = (properties.headers or {}).get(_RETURNS_HEADER)
    return isinstance(returns, int) and returns >= MOST_RETURNS


def is_refused_already(properties: Any) -> bool:
    """Whether the dead letter of a message of these properties is written."""
    return _REFUSED_HERE_HEADER in (properties.headers or {})


class Publisher:
    """Publishes with confirms, on the connection's thread.

    Each method says whether the queue took the message: one whose limit is reached may refuse it. Any other
    failure raises. Only what was taken may be acked.
    """

    def __init__(self, connection: BlockingConnection, queues: Queues) -> None:
        self._queues = queues
        self._log = structlog.get_logger("broker")
        self._say_full_at = dict[str, float]()
        self._frame_max = connection._impl.params.frame_max  # pika tells nowhere else what was agreed on
        self._channel = connection.channel()
        self._channel.confirm_delivery()
        # What is forbidden closes its channel, so this has one of its own.
        self._listeners: BlockingChannel | None = connection.channel()
        self._listeners.confirm_delivery()
        try:
            queues.declare_refusals(self._listeners)
        except ChannelClosedByBroker as error:
            self._nobody_listens(error)

    def put_back(self, properties: Any, body: bytes) -> bool:
        """Put a copy behind the other messages; a time to live begins again."""
        return self._publish(self._queues.work, _copy(properties), body)

    def put_back_refused(self, properties: Any, body: bytes) -> bool:
        """Put a copy behind the others that says that its dead letter, which has its headers, is written."""
        ours = _copy(properties)
        ours.headers = {_REFUSED_HERE_HEADER: True}
        return self._publish(self._queues.work, ours, body)

    def refuse(self, properties: Any, body: bytes, reason: str) -> bool:
        """Publish a dead letter, and tell whoever listens."""
        letter = _copy(properties)
        letter.expiration = None  # a dead letter waits for a person
        ours = {
            REASON_HEADER: reason[:MAX_REASON],
            REFUSED_AT_HEADER: datetime.now(UTC).isoformat(timespec="seconds"),
        }
        letter.headers |= ours
        if not self._fits(letter):
            ours[REASON_HEADER] += (
                f" (The headers of the message are left out here: with this one they are more than the "
                f"{self._frame_max} bytes of RabbitMQ's frame_max.)"
            )
            letter.headers = ours
        taken = self._publish(self._queues.dead, letter, body)
        if taken:
            self._tell_listeners(body, reason)
        return taken

    def notify(self, notice: bytes) -> bool:
        """Publish a refusal that the backend is to be told of."""
        return self._publish(self._queues.notices, _copy(pika.BasicProperties()), notice)

    def _fits(self, properties: Any) -> bool:
        return bool(len(pika.frame.Header(1, 0, properties).marshal()) <= self._frame_max)

    def _publish(self, queue: str, properties: Any, body: bytes) -> bool:
        try:
            self._channel.basic_publish("", queue, body, properties, mandatory=True)
        except NackError:
            self._say_full(queue)
            return False
        return True

    def _say_full(self, queue: str) -> None:
        now = time.monotonic()
        if now >= self._say_full_at.get(queue, 0.0):
            self._say_full_at[queue] = now + 60
            what = "the dead letters take" if queue == self._queues.dead else "a queue takes"
            self._log.error(
                f"{what} no more: empty or enlarge {queue}. What was to go there is kept and tried again."
            )

    def _tell_listeners(self, body: bytes, reason: str) -> None:
        if self._listeners is None:
            return
        try:
            self._listeners.basic_publish(
                self._queues.refusals, refusal_key(body), reason.encode(errors="replace")
            )
        except (NackError, UnroutableError) as error:
            self._log.warning("who waits for a message does not hear of its refusal", error=error_text(error))
        except ChannelClosedByBroker as error:
            self._nobody_listens(error)

    def _nobody_listens(self, error: ChannelClosedByBroker) -> None:
        self._listeners = None
        self._log.warning(
            f"`submit --wait` will not hear of refusals: let the user in AMQP_URL configure and write "
            f"{self._queues.refusals}",
            error=error_text(error),
        )


def _copy(properties: Any) -> Any:
    """Return the properties as we publish them: persistent, and without what RabbitMQ would act on."""
    ours = copy.copy(properties)
    headers = properties.headers or {}
    ours.headers = {name: value for name, value in headers.items() if name not in _NOT_PUBLISHED}
    ours.delivery_mode = pika.DeliveryMode.Persistent.value
    ours.user_id = None  # RabbitMQ takes only our own there, and closes the channel for another
    return ours
