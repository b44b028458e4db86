"""Makes the answers of two API servers comparable."""

import re
from dataclasses import replace
from typing import Any, Final

from tests.parts.plain_api import Answer

_WORD_FOR_WORD: Final = (200, 403, 404, 409, 410)
_PLACEHOLDERS: Final = ("resourceVersion", "continue")
_PATTERNS: Final = {
    re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"): "<uid>",
    re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"): "<time>",
    re.compile(r"\ba-[0-9a-z]{5}\b"): "<pod>",
    re.compile(r"(?<=too old resource version: )\d+ \(\d+\)"): "<versions>",
}


def normal(answer: Answer, namespace: str) -> Answer:
    """Return an answer without what no two servers share: ids, times, versions, who wrote a field.

    Of a refusal, the sentences are compared where the dispatcher reads or shows them by their code alone:
    403, 404, 409, 410. Of an invalid object it is the fields that are found fault with.
    """
    body = _normal(answer.body, namespace)
    if (
        isinstance(body, dict)
        and body.get("kind") == "Status"
        and body.get("code", 200) not in _WORD_FOR_WORD
    ):
        details = dict(body.get("details") or {})
        causes = {(cause.get("reason"), cause["field"]) for cause in details.pop("causes", ())}
        body = {**body, "message": "", "details": details, "causes": sorted(causes)}
    return replace(answer, body=body, warning=answer.warning if answer.status < 400 else None)


def _normal(value: Any, namespace: str) -> Any:
    match value:
        case dict():
            return {
                name: _normal(item, namespace) if name not in _PLACEHOLDERS else f"<{name}>"
                for name, item in value.items()
                if name != "managedFields"
            }
        case list():
            return [_normal(item, namespace) for item in value]
        case str():
            for pattern, placeholder in _PATTERNS.items():
                value = pattern.sub(placeholder, value)
            return value.replace(namespace, "<namespace>")
    return value
