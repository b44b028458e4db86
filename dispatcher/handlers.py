"""Work for a pool of threads, and what came of it back on the thread that owns the connection."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import structlog
from pika.adapters.blocking_connection import BlockingConnection
from pika.exceptions import AMQPError

from dispatcher.queues import error_text

T = TypeVar("T")


class Handlers:
    """One connection's use of a pool; `run` is called on the connection's thread."""

    def __init__(self, connection: BlockingConnection, pool: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._pool = pool
        self._waiting = set[Future[Any]]()
        self.under_way = 0
        """How much has been begun and not been settled."""
        self._log = structlog.get_logger("broker")

    def run(self, work: Callable[[], T], settle: Callable[[Future[T]], None]) -> None:
        """Do the work on the pool, then settle it on the connection's thread, if that still lives."""
        self.under_way += 1
        future = self._pool.submit(work)
        self._waiting.add(future)
        future.add_done_callback(partial(self._back_here, settle))

    def cancel(self) -> None:
        """Leave out what has not begun: its message was not acked, and comes again on the next connection."""
        for future in list(self._waiting):
            future.cancel()

    def _back_here(self, settle: Callable[[Future[T]], None], future: Future[T]) -> None:
        self._waiting.discard(future)
        if future.cancelled():
            return
        try:
            self._connection.add_callback_threadsafe(partial(self._settle, settle, future))
        except AMQPError as error:
            # The message was not acked, so RabbitMQ delivers it again; its Job exists at most once.
            self._log.info("the connection went before the ack", error=error_text(error))

    def _settle(self, settle: Callable[[Future[T]], None], future: Future[T]) -> None:
        self.under_way -= 1
        settle(future)
