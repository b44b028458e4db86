"""How a training ends: exit codes, failure codes and the termination message."""

from enum import IntEnum, StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

TERMINATION_MESSAGE_MAX_BYTES: Final = 4096
"""What Kubernetes keeps of a termination message; the rest is cut off."""


class ExitCode(IntEnum):
    """The container's exit codes, after BSD sysexits.h."""

    OK = 0
    USAGE = 64
    BAD_DATA = 65
    UNAVAILABLE = 69
    SOFTWARE = 70
    INTERRUPTED = 75
    BAD_CONFIG = 78


NO_RETRY: Final = (ExitCode.USAGE, ExitCode.BAD_DATA, ExitCode.BAD_CONFIG)
"""After these another try ends the same way, so podFailurePolicy fails the Job at once."""


class FailureCode(StrEnum):
    """Why a training failed, for programs; failure_reason says it for people."""

    INVALID_IMAGES = "INVALID_IMAGES"
    DOWNLOAD_FAILED = "DOWNLOAD_FAILED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    GPU_UNAVAILABLE = "GPU_UNAVAILABLE"
    IMAGE_PULL = "IMAGE_PULL"
    UNSCHEDULABLE = "UNSCHEDULABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    EVICTED = "EVICTED"
    TRAINING_ERROR = "TRAINING_ERROR"
    STORAGE_ERROR = "STORAGE_ERROR"
    INVALID_REQUEST = "INVALID_REQUEST"
    JOB_DELETED = "JOB_DELETED"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TrainingResult(_Message):
    """The termination message of a training that succeeded: the file is there and loads."""

    model_path: Annotated[str, Field(min_length=1)]
    s3_uri: str | None = None
    loss: float | None = None
    """Mean loss of the last epoch."""
    epochs: int
    seconds: float
    """Wall time of this process."""
    notes: list[str] = []
    """What went wrong beside the weights, such as a plot that could not be drawn."""


class TrainingFailure(_Message):
    """The termination message of a training that failed."""

    failure_code: FailureCode
    failure_reason: Annotated[str, Field(min_length=1)]


def encode(message: TrainingResult | TrainingFailure) -> bytes:
    """Return the termination message as JSON of at most TERMINATION_MESSAGE_MAX_BYTES.

    A longer one loses notes first, then the end of its failure_reason: cut JSON would lose all.
    """
    encoded = _dump(message)
    if len(encoded) > TERMINATION_MESSAGE_MAX_BYTES and isinstance(message, TrainingResult):
        return _dump(message.model_copy(update={"notes": []}))
    reason = getattr(message, "failure_reason", "")
    while len(encoded) > TERMINATION_MESSAGE_MAX_BYTES:
        # A character takes at most six bytes of JSON, so this never drops more than it must.
        reason = reason[: -max(1, (len(encoded) - TERMINATION_MESSAGE_MAX_BYTES) // 6)]
        encoded = _dump(message.model_copy(update={"failure_reason": reason + "…"}))
    return encoded


def _dump(message: TrainingResult | TrainingFailure) -> bytes:
    return message.model_dump_json(exclude_none=True).encode()


def decode(text: str | None) -> TrainingResult | TrainingFailure | None:
    """Read a termination message; None when it is absent or is not one of ours."""
    for kind in (TrainingResult, TrainingFailure):
        try:
            return kind.model_validate_json(text or "")
        except ValidationError:
            continue
    return None
