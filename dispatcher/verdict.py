"""What becomes of a message: the intake decides it, the broker carries it out."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ack:
    """The message's Job exists."""


@dataclass(frozen=True)
class Refuse:
    """The message goes to the dead letters; `notice`, if any, to the queue of notices to send."""

    reason: str
    notice: bytes | None = None


@dataclass(frozen=True)
class Postpone:
    """No room now: the message goes back and consumption stops for a while."""

    seconds: float
    reason: str


Verdict = Ack | Refuse | Postpone
