"""The resources that the API server knows, and the Kubernetes 1.36 schemas: decoding, strategic merge.

The schemas are those of the package kubernetes-validate.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any, Final, NamedTuple

from tests.parts.kube_quantities import canonical
from tests.parts.kube_status import ApiError, Cause

_SCHEMA_FILE: Final = "kubernetes-json-schema/v1.36.0-local/_definitions.json"
_QUANTITY: Final = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
_TYPES: Final = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
}


@dataclass(frozen=True)
class ResourceType:
    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True
    subresources: tuple[str, ...] = ()
    fields: tuple[str, ...] = ("metadata.name", "metadata.namespace")
    """What a fieldSelector may name."""
    has_generation: bool = False

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    @property
    def qualified(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


_EVENT_FIELDS: Final = tuple(f"involvedObject.{name}" for name in ("kind", "namespace", "name", "uid"))
_NAMES: Final = ("metadata.name", "metadata.namespace")

RESOURCES: Final = (
    ResourceType("namespaces", "Namespace", namespaced=False),
    ResourceType("nodes", "Node", namespaced=False, subresources=("status",)),
    ResourceType(
        "pods",
        "Pod",
        subresources=("status", "log", "binding"),
        fields=(*_NAMES, "status.phase", "spec.nodeName", "spec.restartPolicy", "spec.serviceAccountName"),
        has_generation=True,
    ),
    ResourceType("events", "Event", fields=(*_NAMES, *_EVENT_FIELDS, "reason", "type", "reportingComponent")),
    ResourceType("configmaps", "ConfigMap"),
    ResourceType("secrets", "Secret"),
    ResourceType("serviceaccounts", "ServiceAccount"),
    ResourceType("resourcequotas", "ResourceQuota", subresources=("status",)),
    ResourceType("persistentvolumeclaims", "PersistentVolumeClaim", subresources=("status",)),
    ResourceType(
        "jobs",
        "Job",
        "batch",
        subresources=("status",),
        fields=(*_NAMES, "status.successful"),
        has_generation=True,
    ),
    ResourceType("cronjobs", "CronJob", "batch", subresources=("status",), has_generation=True),
    ResourceType("leases", "Lease", "coordination.k8s.io"),
    # The same objects as the core events, under other field names: see kube_events.py.
    ResourceType("events", "Event", "events.k8s.io", fields=(*_NAMES, "reason", "type")),
)


class Decoded(NamedTuple):
    value: Any
    causes: list[Cause]
    unknown: list[str]
    """Paths of the fields that the schema does not have; value is without them, as the real server's is."""


class Schemas:
    """Decode objects as the API server does: unknown fields go, a wrong type is 400, a null is absent."""

    @cached_property
    def _definitions(self) -> dict[str, Any]:
        text = resources.files("kubernetes_validate").joinpath(_SCHEMA_FILE).read_text()
        definitions: dict[str, Any] = json.loads(text)["$defs"]
        return definitions

    @cached_property
    def _kinds(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (kind["group"], kind["kind"]): schema
            for schema in self._definitions.values()
            for kind in schema.get("x-kubernetes-group-version-kind", ())
            if kind["version"] == "v1"
        }

    def decode(self, resource: ResourceType, value: Any) -> Decoded:
        """Raises ApiError 400 when a field has a wrong type."""
        decoded = Decoded(None, [], [])
        schema = self._kinds[resource.group, resource.kind]
        return decoded._replace(value=self._decode(value, schema, "", decoded, resource.kind))

    def _resolve(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            schema = self._definitions[schema["$ref"].removeprefix("#/$defs/")]
        return schema

    def _decode(self, value: Any, schema: dict[str, Any], path: str, found: Decoded, kind: str) -> Any:
        schema = self._resolve(schema)
        if not _has_type(value, schema):
            name = type(value).__name__
            raise ApiError(
                400,
                f'{kind} in version "v1" cannot be handled as a {kind}: json: cannot unmarshal {name} into'
                f" Go struct field {kind}.{path} of type {schema.get('type')}",
            )
        if isinstance(value, list):
            items = schema.get("items", {})
            return [
                self._decode(item, items, f"{path}[{index}]", found, kind) for index, item in enumerate(value)
            ]
        if isinstance(value, dict):
            return self._decode_object(value, schema, path, found, kind)
        if schema is self._definitions[_QUANTITY]:
            return canonical(value)
        if schema.get("format") == "date-time" and not _TIME.fullmatch(value):
            raise ApiError(
                400,
                f'{kind} in version "v1" cannot be handled as a {kind}: parsing time "{value}" as RFC 3339',
            )
        allowed = [option for option in schema.get("enum", ()) if option]
        if allowed and path not in ("kind", "apiVersion") and value not in ("", *allowed):
            supported = ", ".join(f'"{option}"' for option in allowed)
            found.causes.append(
                Cause(
                    "FieldValueNotSupported",
                    path,
                    f'Unsupported value: "{value}": supported values: {supported}',
                )
            )
        return value

    def _decode_object(
        self, value: dict[str, Any], schema: dict[str, Any], path: str, found: Decoded, kind: str
    ) -> dict[str, Any]:
        properties = schema.get("properties")
        others = schema.get("additionalProperties")
        result = {}
        for name, item in value.items():
            if item is None:
                continue
            where = f"{path}.{name}" if path else name
            if properties is not None and name in properties:
                result[name] = self._decode(item, properties[name], where, found, kind)
            elif isinstance(others, dict):
                result[name] = self._decode(item, others, where, found, kind)
            elif properties is None:
                result[name] = item
            else:
                found.unknown.append(where)
        found.causes.extend(
            Cause("FieldValueRequired", f"{path}.{name}" if path else name, "Required value")
            for name in schema.get("required", ())
            if name not in result
        )
        return result

    def strategic_merge(self, resource: ResourceType, value: Any, patch: Any) -> Any:
        """Merge patch into value by the schema's patch strategies and merge keys."""
        return self._merge(value, patch, self._kinds[resource.group, resource.kind])

    def _merge(self, value: Any, patch: Any, schema: dict[str, Any]) -> Any:
        if not isinstance(patch, dict):
            return patch
        if patch.get("$patch") == "replace":
            return {name: item for name, item in patch.items() if name != "$patch"}
        schema = self._resolve(schema)
        properties = schema.get("properties", {})
        result = dict(value) if isinstance(value, dict) else {}
        for name, item in patch.items():
            if name.startswith("$deleteFromPrimitiveList/"):
                field = name.partition("/")[2]
                result[field] = [kept for kept in result.get(field, ()) if kept not in item]
            elif name.startswith("$"):
                continue  # $setElementOrder: the order of a merged list is nothing that is tested here
            elif item is None:
                result.pop(name, None)
            else:
                field_schema = properties.get(name) or schema.get("additionalProperties") or {}
                if isinstance(item, list):
                    result[name] = self._merge_list(result.get(name) or [], item, field_schema)
                else:
                    result[name] = self._merge(result.get(name), item, field_schema)
        return result

    def _merge_list(self, value: list[Any], patch: list[Any], schema: dict[str, Any]) -> list[Any]:
        if "merge" not in schema.get("x-kubernetes-patch-strategy", "") or {"$patch": "replace"} in patch:
            return [item for item in patch if item != {"$patch": "replace"}]
        key = schema.get("x-kubernetes-patch-merge-key")
        if key is None:
            return [*(item for item in patch if item not in value), *value]
        result = list(value)
        for item in patch:
            places = [place for place, old in enumerate(result) if old.get(key) == item.get(key)]
            if item.get("$patch") == "delete":
                result = [old for place, old in enumerate(result) if place not in places]
            elif places:
                result[places[0]] = self._merge(result[places[0]], item, schema.get("items", {}))
            else:
                result.append(self._merge({}, item, schema.get("items", {})))
        return result


def _has_type(value: Any, schema: dict[str, Any]) -> bool:
    if "oneOf" in schema:
        return any(_has_type(value, option) for option in schema["oneOf"])
    names = schema.get("type")
    if names is None:
        return True
    for name in (names,) if isinstance(names, str) else names:
        if isinstance(value, _TYPES.get(name, ())) and (name == "boolean" or not isinstance(value, bool)):
            return True
    return False
