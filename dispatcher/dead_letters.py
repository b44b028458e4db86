"""Refused messages go to the dead letters, and their notices to their queue; then each is acked.

What a full queue does not take is held unacked and tried again; if it fails again, the message goes behind
the others, and so it holds up no good one. Where the work queue is full too, it takes the place of the next.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from dispatcher.publisher import FULL_SECONDS, Publisher, is_refused_already

_HURRY_SECONDS: Final = 1.0


class DeadLetters:
    """Those of one channel of the work queue, on the connection's thread.

    Args:
        take_next: take a message out of the work queue, call what puts another into it, and return whether
            that worked.
        buried: called for each dead letter that was written.
        many: once so many are held, each is tried again after a second, to make way for good messages.
        most: once so many are held, none is taken out of the work queue.
    """

    def __init__(
        self,
        connection: BlockingConnection,
        work: BlockingChannel,
        publisher: Publisher,
        take_next: Callable[[Callable[[], bool]], bool],
        buried: Callable[[], None],
        many: int,
        most: int,
    ) -> None:
        self._connection = connection
        self._work = work
        self._publisher = publisher
        self._take_next = take_next
        self._buried = buried
        self._many = many
        self._most = most
        self._held = 0

    def refuse(self, method: Any, properties: Any, body: bytes, reason: str, notice: bytes | None) -> None:
        if is_refused_already(properties):
            self._notify(method, properties, body, notice)
        else:
            self._bury(method, properties, body, reason, notice)

    def _bury(
        self,
        method: Any,
        properties: Any,
        body: bytes,
        reason: str,
        notice: bytes | None,
        again: bool = False,
    ) -> None:
        if self._publisher.refuse(properties, body, reason):
            self._buried()
            self._notify(method, properties, body, notice)
        elif again and self._put_behind(partial(self._publisher.put_back, properties, body)):
            self._work.basic_ack(method.delivery_tag)
        else:
            self._hold(partial(self._bury, method, properties, body, reason, notice, again=True))

    def _notify(
        self, method: Any, properties: Any, body: bytes, notice: bytes | None, again: bool = False
    ) -> None:
        told = notice is None or self._publisher.notify(notice)
        if told or (again and self._put_behind(partial(self._publisher.put_back_refused, properties, body))):
            self._work.basic_ack(method.delivery_tag)
        else:
            self._hold(partial(self._notify, method, properties, body, notice, again=True))

    def _put_behind(self, put_back: Callable[[], bool]) -> bool:
        """Put a message behind the others, if need be in the place of the next of them."""
        return put_back() or (self._many <= self._held < self._most and self._take_next(put_back))

    def _hold(self, then: Callable[[], None]) -> None:
        seconds = FULL_SECONDS if self._held < self._many else _HURRY_SECONDS
        self._held += 1
        self._connection.call_later(seconds, partial(self._let_go, then))

    def _let_go(self, then: Callable[[], None]) -> None:
        self._held -= 1
        then()
