"""Hears whether a message is refused, without touching a queue that others work on.

The dead letters are no place to look: what is taken from there to be looked at and put back is missing
for a redrive meanwhile, and RabbitMQ 4 drops what was put back too often.
"""

import time
from types import TracebackType
from typing import Any, Self

import structlog
from pika.exceptions import AMQPError

from dispatcher.errors import BrokerUnavailableError
from dispatcher.queues import Queues, connect, error_text, refusal_key


class RefusalListener:
    """Listens for the refusal of one message, from before it is published.

    Raises:
        BrokerUnavailableError: RabbitMQ cannot be listened to.
    """

    def __init__(self, url: str, queues: Queues, body: bytes) -> None:
        self._reason: str | None = None
        self._log = structlog.get_logger("refusals")
        self._connection = connect(url)
        try:
            channel = self._connection.channel()
            queues.declare_refusals(channel)
            # Said, since one virtual host may make quorum queues by default, and those cannot be exclusive.
            kind = {"x-queue-type": "classic"}
            queue = channel.queue_declare("", exclusive=True, arguments=kind).method.queue
            channel.queue_bind(queue, queues.refusals, refusal_key(body))
            channel.basic_consume(queue, self._on_refusal, auto_ack=True)
        except AMQPError as error:
            self._close()
            raise BrokerUnavailableError(
                f"RabbitMQ does not let this user hear of a refusal: {error_text(error)}; let it configure, "
                f"write and read {queues.refusals} and amq.gen-*, or leave out --wait"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def wait(self, seconds: float) -> str | None:
        """Listen for so long; return the reason of the refusal once it was heard."""
        if self._connection.is_open:
            try:
                self._connection.process_data_events(time_limit=seconds)
            except AMQPError as error:
                self._log.warning("a refusal will not be heard of any more", error=error_text(error))
        else:
            time.sleep(seconds)
        return self._reason

    def _on_refusal(self, _channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        self._reason = body.decode(errors="replace")

    def _close(self) -> None:
        if self._connection.is_open:
            self._connection.close()
