"""The RabbitMQ edge: consume with manual acks, dead-letter with confirms, reconnect for ever.

One thread owns the connection, and so heartbeats never wait for a handler: handlers run on a pool,
and what they decide is carried out back on that thread. Nothing is held unacked for long: when there
is no room for Jobs the consumer is cancelled and what was delivered goes back to the queue.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import structlog
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection
from pika.exceptions import AMQPError

from dispatcher.dead_letters import DeadLetters
from dispatcher.errors import BrokerUnavailableError
from dispatcher.handlers import Handlers
from dispatcher.notice_queue import NoticeQueue
from dispatcher.publisher import FULL_SECONDS, Publisher, comes_back_too_often
from dispatcher.queues import Queues, connect, error_text
from dispatcher.retry import backoff_seconds
from dispatcher.verdict import Ack, Postpone, Refuse, Verdict

_DRAIN_SECONDS: Final = 5.0
_DEPTH_EVERY: Final = 10.0
_PREFETCH: Final = 16
"""One under way and one more for each handler; all of them are held in memory, at up to 16 MiB each."""
_MOST_HELD: Final = 64
"""Refused messages in memory, beyond which no more is taken out of a full queue in their place."""
_NOTICE_HANDLERS: Final = 4
_UNFORESEEN_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Work:
    """What is done with what comes out of the queues."""

    handle: Callable[[bytes, str | None], Verdict]
    """Body and message_id of a request to a Verdict; called on several threads."""
    send_notice: Callable[[bytes], float | None]
    """A notice's body to the seconds after which to try again, or None when it is done."""
    seen_depth: Callable[[int], None] = lambda _messages: None
    """Called now and then with how many requests wait."""
    buried: Callable[[], None] = lambda: None
    """Called for each dead letter that was written."""


class Broker:
    """Consumes the work queue and the queue of notices until told to stop.

    Args:
        handlers: how many messages are handled at once.
    """

    def __init__(self, url: str, queues: Queues, work: Work, handlers: int = 8) -> None:
        self._url = url
        self._queues = queues
        self._work = work
        self._handlers = handlers
        self._consuming: _Consumption | None = None
        self._log = structlog.get_logger("broker")

    def run(self, stop: threading.Event) -> None:
        """Stay connected and consume until stop is set; then let what is under way end."""
        attempt = 0
        pool = ThreadPoolExecutor(self._handlers, thread_name_prefix="intake")
        # Of its own: a backend that does not answer holds a thread, and must hold up no Job.
        notice_pool = ThreadPoolExecutor(_NOTICE_HANDLERS, thread_name_prefix="notices")
        while not stop.is_set():
            connected_at = time.monotonic()
            try:
                self._run_connected(pool, notice_pool, stop)
            except Exception as error:  # noqa: BLE001 - whatever it is, nothing was acked: begin anew
                # A connection that held for a while starts the back-off afresh.
                attempt = 1 if time.monotonic() - connected_at > 60 else attempt + 1
                delay = backoff_seconds(attempt, first=0.5, most=30)
                self._log.warning(
                    "RabbitMQ connection lost", error=error_text(error), again_in=round(delay, 1)
                )
                stop.wait(delay)
            finally:
                self._consuming = None
        pool.shutdown(wait=False)
        notice_pool.shutdown(wait=False)

    @property
    def connected(self) -> bool:
        return self._consuming is not None

    def resume(self) -> None:
        """There may be room again: consume now if consumption had stopped. Callable from any thread."""
        consuming = self._consuming
        if consuming:
            consuming.resume_soon()

    def wake(self) -> None:
        """Look at once whether to stop. Callable from any thread."""
        consuming = self._consuming
        if consuming:
            consuming.wake()

    def _run_connected(
        self, pool: ThreadPoolExecutor, notice_pool: ThreadPoolExecutor, stop: threading.Event
    ) -> None:
        connection = connect(self._url)
        handlers, notice_handlers = Handlers(connection, pool), Handlers(connection, notice_pool)
        try:
            consumption = _Consumption(connection, self._queues, self._work, handlers, notice_handlers, stop)
            self._consuming = consumption
            self._log.info("consuming", queue=self._queues.work)
            consumption.run()
        finally:
            handlers.cancel()
            notice_handlers.cancel()
            if connection.is_open:
                connection.close()


class _Consumption:
    """One connection's worth of consuming; all methods but resume_soon and wake run on its thread."""

    def __init__(
        self,
        connection: BlockingConnection,
        queues: Queues,
        work: Work,
        handlers: Handlers,
        notice_handlers: Handlers,
        stop: threading.Event,
    ) -> None:
        self._connection = connection
        self._queues = queues
        self._handlers = handlers
        self._handle = work.handle
        self._notice_handlers = notice_handlers
        self._seen_depth = work.seen_depth
        self._stop = stop
        self._depth_due = 0.0
        self._consumer: str | None = None
        self._resume_at = 0.0
        self._log = structlog.get_logger("broker")

        self._channel = connection.channel()
        self._channel.basic_qos(prefetch_count=_PREFETCH)
        self._channel.add_on_cancel_callback(self._cancelled)
        queues.declare(self._channel)
        self._publisher = Publisher(connection, queues)
        self._refused = DeadLetters(
            connection,
            self._channel,
            self._publisher,
            self._take_next,
            work.buried,
            many=_PREFETCH // 2,
            most=_MOST_HELD,
        )
        self._notices = NoticeQueue(connection, queues, self._publisher, notice_handlers, work.send_notice)

    def run(self) -> None:
        while not self._stop.is_set():
            if self._consumer is None and time.monotonic() >= self._resume_at:
                self._queues.declare(self._channel)
                self._consumer = self._channel.basic_consume(self._queues.work, self._on_message)
            self._look_at_depth()
            if not self._notices.consuming:
                raise BrokerUnavailableError(f"RabbitMQ ended the consumption of {self._queues.notices}")
            self._connection.process_data_events(time_limit=0.5)
        self._stop_consuming()
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._handlers.under_way + self._notice_handlers.under_way and time.monotonic() < deadline:
            self._connection.process_data_events(time_limit=0.1)

    def _look_at_depth(self) -> None:
        if time.monotonic() >= self._depth_due:
            self._depth_due = time.monotonic() + _DEPTH_EVERY
            self._seen_depth(self._queues.depth(self._channel))

    def resume_soon(self) -> None:
        self._resume_at = 0.0

    def wake(self) -> None:
        try:
            self._connection.add_callback_threadsafe(lambda: None)
        except AMQPError as error:
            self._log.debug("the connection has gone already", error=error_text(error))

    def _on_message(self, _channel: BlockingChannel, method: Any, properties: Any, body: bytes) -> None:
        if comes_back_too_often(properties):
            self._behind_the_others(method, properties, body)
        elif self._consumer is None:  # delivered before the cancellation took effect
            self._channel.basic_nack(method.delivery_tag, requeue=True)
        else:
            self._begin(method, properties, body)

    def _begin(self, method: Any, properties: Any, body: bytes) -> None:
        work = partial(self._handle_now, body, properties.message_id)
        self._handlers.run(work, partial(self._settle, method, properties, body))

    def _handle_now(self, body: bytes, message_id: str | None) -> Verdict:
        if self._stop.is_set():
            return Postpone(0.0, "the dispatcher stops")
        return self._handle(body, message_id)

    def _settle(self, method: Any, properties: Any, body: bytes, future: Future[Verdict]) -> None:
        behind_the_others = partial(self._behind_the_others, method, properties, body)
        if error := future.exception():
            self._log.error("a message could not be handled", exc_info=error)
            # At the head of the queue it would come again and again, and no other would.
            self._connection.call_later(_UNFORESEEN_SECONDS, behind_the_others)
            return
        match future.result():
            case Ack():
                self._channel.basic_ack(method.delivery_tag)
            case Refuse(reason, notice):
                self._refused.refuse(method, properties, body, reason, notice)
            case Postpone(seconds, reason):
                if comes_back_too_often(properties):
                    self._connection.call_later(FULL_SECONDS, behind_the_others)
                else:
                    self._channel.basic_nack(method.delivery_tag, requeue=True)
                if self._consumer is not None:
                    self._log.info("consumption stops for a while", reason=reason, seconds=round(seconds, 1))
                self._stop_consuming()
                self._resume_at = time.monotonic() + seconds

    def _behind_the_others(self, method: Any, properties: Any, body: bytes) -> None:
        """Put a copy there. It is the same request: sent twice, after a crash in between, it is one Job.

        A queue at its limit takes none; then it is handled before the others.
        """
        if self._publisher.put_back(properties, body):
            self._channel.basic_ack(method.delivery_tag)
        elif self._consumer is None:
            self._connection.call_later(
                FULL_SECONDS, partial(self._behind_the_others, method, properties, body)
            )
        else:
            self._begin(method, properties, body)

    def _take_next(self, put_back: Callable[[], bool]) -> bool:
        """Take the next message, whose place another gets: a queue at its limit has room for no more.

        It is none of those that are prefetched, all of which may be held. A queue beyond its limit, as one
        that was given messages back, takes none yet. The next is handled all the same: given back it would
        be the next again, and none behind it would ever come.
        """
        if self._consumer is None:
            return False
        method, properties, body = self._channel.basic_get(self._queues.work)
        is_back = put_back()
        if method is not None and properties is not None:
            self._on_message(self._channel, method, properties, body)
        return is_back

    def _stop_consuming(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            self._channel.basic_cancel(consumer)

    def _cancelled(self, _frame: Any) -> None:
        """The server cancelled the consumer: the queue was deleted, say. Declare it and go on."""
        self._log.warning("RabbitMQ cancelled the consumer", queue=self._queues.work)
        self._consumer = None
        self._resume_at = time.monotonic() + 1.0
