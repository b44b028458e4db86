"""The error answers of an API server: Status objects with the reasons and sentences of the real one."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class Cause(NamedTuple):
    """One fault of an invalid object."""

    reason: str
    """FieldValueRequired, FieldValueInvalid, FieldValueForbidden, FieldValueNotSupported, ..."""
    field: str
    message: str


def not_supported(field: str, value: str, supported: tuple[str, ...]) -> Iterator[Cause]:
    if value not in supported:
        listed = ", ".join(f'"{item}"' for item in supported)
        yield Cause(
            "FieldValueNotSupported", field, f'Unsupported value: "{value}": supported values: {listed}'
        )


class ApiError(Exception):
    """Ends a request with code and a Status object."""

    def __init__(
        self, code: int, message: str, reason: str | None = None, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = REASONS.get(code, "") if reason is None else reason
        self.details = details

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "code": self.code,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        return status


def _details(qualified: str, name: str) -> dict[str, Any]:
    plural, _, group = qualified.partition(".")
    return {"name": name, **({"group": group} if group else {}), "kind": plural}


def not_found(qualified: str, name: str) -> ApiError:
    """qualified is jobs.batch or pods."""
    return ApiError(404, f'{qualified} "{name}" not found', details=_details(qualified, name))


def already_exists(qualified: str, name: str, being_deleted: bool = False) -> ApiError:
    prefix = "object is being deleted: " if being_deleted else ""
    message = f'{prefix}{qualified} "{name}" already exists'
    return ApiError(409, message, "AlreadyExists", details=_details(qualified, name))


def no_resource() -> ApiError:
    return ApiError(404, "the server could not find the requested resource", details={})


def conflict(qualified: str, name: str, why: str | None = None) -> ApiError:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try again"
    )
    return ApiError(
        409,
        f'Operation cannot be fulfilled on {qualified} "{name}": {why}',
        details=_details(qualified, name),
    )


def forbidden(qualified: str, name: str, why: str) -> ApiError:
    quoted = f' "{name}"' if name else ""
    return ApiError(403, f"{qualified}{quoted} is forbidden: {why}", details=_details(qualified, name))


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> ApiError:
    sentences = [f"{cause.field}: {cause.message}" for cause in causes]
    text = sentences[0] if len(sentences) == 1 else f"[{', '.join(sentences)}]"
    qualified = f"{kind}.{group}" if group else kind
    return ApiError(
        422,
        f'{qualified} "{name}" is invalid: {text}',
        details={
            **{key: text for key, text in (("name", name), ("group", group), ("kind", kind)) if text},
            "causes": [cause._asdict() for cause in causes],
        },
    )
