"""What can go wrong at the dispatcher's edges, told apart by what is to be done about it.

    DispatcherError
    ├── RefusedMessageError       the message can never become a Job: to the dead letters
    ├── JobRefusedError           the cluster will never take this Job: to the dead letters
    ├── JobConflictError          a Job of this name holds another request: to the dead letters
    ├── StaleJobError             the Job changed since it was read: read it again
    ├── BackendBusyError          no room now (quota, rate limit): stop consuming, try later
    ├── BackendUnavailableError   the API server does not answer: stop consuming, try later
    └── BrokerUnavailableError    RabbitMQ does not answer

No pika, kubernetes or requests exception leaves the module that talks to that client.
"""

from dataclasses import dataclass
from typing import Final

MAX_REASON: Final = 2000
"""Characters: a refusal's reason is a sentence, and goes into a header, a PATCH and a log."""


class DispatcherError(Exception):
    """Base of the dispatcher's errors; the text is a sentence fit for a log."""


@dataclass(frozen=True)
class Sender:
    """Whom a refused message came from, as far as it could be read."""

    style_id: int | str | None = None
    task_id: str | None = None
    webhook_url: str | None = None


class RefusedMessageError(DispatcherError):
    def __init__(self, reason: str, sender: Sender) -> None:
        super().__init__(reason if len(reason) <= MAX_REASON else reason[: MAX_REASON - 1] + "…")
        self.sender = sender


class JobRefusedError(DispatcherError):
    pass


class JobConflictError(DispatcherError):
    pass


class StaleJobError(DispatcherError):
    pass


class BackendUnavailableError(DispatcherError):
    """Raised with the seconds after which to try again, where the server said so."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class BackendBusyError(BackendUnavailableError):
    pass


class BrokerUnavailableError(DispatcherError):
    pass
