"""A message's bytes become a TrainingRequest, or are refused with a sentence that names the field."""

import hashlib
import json
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from dispatcher.errors import RefusedMessageError, Sender
from job_contract.request import StyleId, TaskId, TrainingRequest, WebhookUrl, explain

T = TypeVar("T")

MESSAGE_TYPE: Final = "model_training"
MAX_BODY_BYTES: Final = 2**20
"""Far more than any request that can be kept, however it is escaped. Read, it may take 20 times as much."""
MAX_REQUEST_BYTES: Final = 200_000
"""The request becomes an annotation, and Kubernetes keeps at most 256 KiB of those on an object."""

_PARAMETERS: Final = {"epochs": "num_epochs", "learning_rate": "learning_rate", "batch_size": "batch_size"}
_STYLE_ID: Final[TypeAdapter[int | str]] = TypeAdapter(StyleId)
_TASK_ID: Final[TypeAdapter[str]] = TypeAdapter(TaskId)
_WEBHOOK_URL: Final[TypeAdapter[str]] = TypeAdapter(WebhookUrl)


def parse_message(body: bytes, message_id: str | None = None) -> TrainingRequest:
    """Read any of the three message forms; task_id of the result is the message's identity.

    Args:
        body: the AMQP body, JSON in UTF-8.
        message_id: the AMQP message_id property; the identity when the body has no task_id.

    Raises:
        RefusedMessageError: with every fault that was found, and whom to tell of it.
    """
    identity = message_id or hashlib.sha256(body).hexdigest()
    payload = _load(body, Sender(task_id=identity))
    fields = _flatten(payload, identity)
    sender = _sender(fields)
    if payload.get("type") not in (None, MESSAGE_TYPE):
        raise RefusedMessageError(f"type must be {MESSAGE_TYPE}", sender)
    for name, holder in (("data", payload), ("parameters", fields)):
        if not isinstance(holder.get(name) or {}, dict):
            raise RefusedMessageError(f"{name} must be an object", sender)
    try:
        request = TrainingRequest.model_validate(fields)
    except ValidationError as error:
        raise RefusedMessageError(explain(error), sender) from error
    size = len(request.to_json().encode())
    if size > MAX_REQUEST_BYTES:
        raise RefusedMessageError(
            f"image_paths and captions are {size} bytes together, at most {MAX_REQUEST_BYTES} fit; "
            "shorten the paths or send fewer",
            sender,
        )
    return request


def _load(body: bytes, sender: Sender) -> dict[str, Any]:
    if len(body) > MAX_BODY_BYTES:
        raise RefusedMessageError(
            f"the body is {len(body)} bytes of JSON, at most {MAX_BODY_BYTES} are read", sender
        )
    try:
        payload = json.loads(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedMessageError(f"the body is not JSON in UTF-8: {_cause(error)}", sender) from error
    if not isinstance(payload, dict):
        raise RefusedMessageError("the body must be a JSON object", sender)
    return payload


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _cause(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _flatten(payload: dict[str, Any], identity: str) -> dict[str, Any]:
    """Bring the plain form and both task envelopes to the names of TrainingRequest."""
    fields = dict(payload)
    data = payload.get("data")
    if isinstance(data, dict):
        fields.update({name: value for name, value in data.items() if value is not None})
    parameters = fields.get("parameters")
    if isinstance(parameters, dict):
        for theirs, ours in _PARAMETERS.items():
            if fields.get(ours) is None:
                fields[ours] = parameters.get(theirs)
    if fields.get("image_paths") is None:
        fields["image_paths"] = fields.get("images")
    if fields.get("webhook_url") is None:
        fields["webhook_url"] = fields.get("callback_url")
    if fields.get("task_id") is None:
        fields["task_id"] = identity
    return fields


def _sender(fields: dict[str, Any]) -> Sender:
    return Sender(
        style_id=_valid(_STYLE_ID, fields.get("style_id")),
        task_id=_valid(_TASK_ID, fields["task_id"]),
        webhook_url=_valid(_WEBHOOK_URL, fields.get("webhook_url")),
    )


def _valid(adapter: TypeAdapter[T], value: object) -> T | None:
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError:
        return None
