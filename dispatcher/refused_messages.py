"""Refused messages go to the dead letters, and their notices to their queue; then each is acked.

What a full queue does not take is held unacked and tried again; if it fails again, the message goes behind
the others, and so it holds up no good one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from dispatcher.publisher import FULL_SECONDS, Publisher, is_refused_already

_HURRY_SECONDS: Final = 1.0


class RefusedMessages:
    """Those of one channel of the work queue, on the connection's thread.

    Args:
        many: where so many are held here, they make way for good ones sooner.
    """

    def __init__(
        self, connection: BlockingConnection, work: BlockingChannel, publisher: Publisher, many: int
    ) -> None:
        self._connection = connection
        self._work = work
        self._publisher = publisher
        self._many = many
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
            self._notify(method, properties, body, notice)
        elif again and self._publisher.put_back(properties, body):
            self._work.basic_ack(method.delivery_tag)
        else:
            self._hold(partial(self._bury, method, properties, body, reason, notice, again=True))

    def _notify(
        self, method: Any, properties: Any, body: bytes, notice: bytes | None, again: bool = False
    ) -> None:
        told = notice is None or self._publisher.notify(notice)
        if told or (again and self._publisher.put_back_refused(properties, body)):
            self._work.basic_ack(method.delivery_tag)
        else:
            self._hold(partial(self._notify, method, properties, body, notice, again=True))

    def _hold(self, then: Callable[[], None]) -> None:
        seconds = FULL_SECONDS if self._held < self._many else _HURRY_SECONDS
        self._held += 1
        self._connection.call_later(seconds, partial(self._let_go, then))

    def _let_go(self, then: Callable[[], None]) -> None:
        self._held -= 1
        then()
