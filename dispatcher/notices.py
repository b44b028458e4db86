"""Notices tell the backend of refused messages: one attempt at a time, none sooner than it is due."""

import json
import threading
import time
from collections import Counter
from typing import Final

import structlog

from dispatcher import report
from dispatcher.retry import backoff_seconds
from dispatcher.webhook import Delivered, TryAgain, Webhook

_HOST_BUSY_SECONDS: Final = 5.0


class Notices:
    """Safe to use from many threads; RabbitMQ keeps a notice until it is delivered."""

    def __init__(
        self, webhook: Webhook, first_retry_seconds: float = 1.0, most_retry_seconds: float = 300.0
    ) -> None:
        self._webhook = webhook
        self._first_retry_seconds = first_retry_seconds
        self._most_retry_seconds = most_retry_seconds
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self._due: dict[str, float] = {}
        """When a notice may be tried again, by the monotonic clock: it may come back sooner."""
        self._asking: Counter[str] = Counter()
        self._failing: set[str] = set()
        """Hosts that took nothing when last asked: each is asked once at a time, and so holds up no other."""
        self._log = structlog.get_logger("notices")

    def send(self, body: bytes) -> float | None:
        """Make one attempt; return the seconds until the next, None when none is needed."""
        structlog.contextvars.clear_contextvars()
        notice = json.loads(body)
        name, host = notice["id"], report.host_of(notice["url"])
        with self._lock:
            remaining = self._due.get(name, 0.0) - time.monotonic()
            if remaining > 0:
                return remaining
            if host in self._failing and self._asking[host]:
                return _HOST_BUSY_SECONDS
            self._asking[host] += 1
        try:
            answer = self._webhook.patch(notice["url"], notice["payload"], name)
        finally:
            with self._lock:
                self._asking[host] -= 1
        if isinstance(answer, TryAgain):
            self._failing.add(host)
            self._attempts[name] += 1
            self._log.warning("refusal not delivered", error=answer.reason)
            again_in = backoff_seconds(
                self._attempts[name],
                first=self._first_retry_seconds,
                most=self._most_retry_seconds,
                at_least=answer.retry_after,
            )
            self._due[name] = time.monotonic() + again_in
            return again_in
        self._failing.discard(host)
        self._attempts.pop(name, None)
        self._due.pop(name, None)
        if isinstance(answer, Delivered):
            self._log.info("refusal delivered", style=notice["payload"]["style_id"])
        else:
            self._log.error("refusal not accepted", style=notice["payload"]["style_id"], reason=answer.reason)
        return None
