"""One request to the API server, read."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.parts.kube_schema import ResourceType
from tests.parts.kube_status import ApiError


@dataclass(frozen=True)
class ApiCall:
    """/apis/batch/v1/namespaces/{namespace}/jobs/{name}/{subresource}."""

    verb: str
    resource: ResourceType
    namespace: str
    name: str
    subresource: str
    query: Mapping[str, str]
    content_type: str
    user_agent: str
    body: bytes

    @property
    def key(self) -> tuple[str, str]:
        return (self.namespace, self.name)

    @property
    def target(self) -> str:
        """Plural with its subresource, as RBAC and faults name it."""
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural

    def number(self, field: str) -> int:
        """Return a number of the query, 0 where there is none; ApiError 400 when it is no number."""
        text = self.query.get(field) or "0"
        if not text.isdigit():
            raise ApiError(400, f'strconv.ParseInt: parsing "{text}": invalid syntax')
        return int(text)


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"the object provided is unrecognized (must be JSON): {error}") from error
