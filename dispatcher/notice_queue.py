"""The queue of notices: what the backend is to be told of refused messages, kept until it was told."""

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from dispatcher.handlers import Handlers
from dispatcher.publisher import FULL_SECONDS, Publisher, comes_back_too_often
from dispatcher.queues import Queues

_PREFETCH: Final = 64
_MOST_HELD_SECONDS: Final = 600.0


class NoticeQueue:
    """Consumes the notices from its making on, on the connection's thread.

    Args:
        handlers: threads that messages do not wait for, since a backend may take its time to answer.
        send: a notice's body to the seconds after which to try again, or None when it is done.
    """

    def __init__(
        self,
        connection: BlockingConnection,
        queues: Queues,
        publisher: Publisher,
        handlers: Handlers,
        send: Callable[[bytes], float | None],
    ) -> None:
        self._connection = connection
        self._publisher = publisher
        self._handlers = handlers
        self._send = send
        self._log = structlog.get_logger("broker")
        self._channel = connection.channel()
        self._channel.basic_qos(prefetch_count=_PREFETCH)
        self._held = 0
        self._cancelled = False
        self._channel.add_on_cancel_callback(self._on_cancel)
        self._channel.basic_consume(queues.notices, self._on_notice)

    @property
    def consuming(self) -> bool:
        """Whether notices still come: RabbitMQ may close a channel or cancel a consumer by itself."""
        return self._channel.is_open and not self._cancelled

    def _on_cancel(self, _frame: Any) -> None:
        self._cancelled = True

    def _on_notice(self, _channel: BlockingChannel, method: Any, properties: Any, body: bytes) -> None:
        if comes_back_too_often(properties):
            self._to_the_end(method, body)
        else:
            self._attempt(method, body)

    def _attempt(self, method: Any, body: bytes) -> None:
        self._handlers.run(partial(self._send, body), partial(self._settle, method, body))

    def _settle(self, method: Any, body: bytes, future: Future[float | None]) -> None:
        error = future.exception()
        if error:
            self._log.error("a notice could not be sent", exc_info=error)
        again_in = 60.0 if error else future.result()
        if again_in is None:
            self._channel.basic_ack(method.delivery_tag)
        else:
            self._hold(again_in, method, body)

    def _hold(self, seconds: float, method: Any, body: bytes) -> None:
        """Hold a notice no longer than RabbitMQ allows, and where many are held, until others had a turn."""
        most = _MOST_HELD_SECONDS if self._held < _PREFETCH // 2 else FULL_SECONDS
        self._held += 1
        self._connection.call_later(min(seconds, most), partial(self._let_go, method, body))

    def _let_go(self, method: Any, body: bytes) -> None:
        self._held -= 1
        self._to_the_end(method, body)

    def _to_the_end(self, method: Any, body: bytes) -> None:
        """Put a notice behind the others: a few that cannot be delivered would hold up the rest.

        A queue at its limit takes none, and all that are held would wait for one another: send it now.
        """
        if self._publisher.notify(body):
            self._channel.basic_ack(method.delivery_tag)
        else:
            self._attempt(method, body)
