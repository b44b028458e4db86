"""What a create, update or patch makes of an object, and what the API server refuses of it."""

import json
import secrets
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jsonpatch

from tests.parts import kube_events, kube_rules, kube_status
from tests.parts.kube_schema import ResourceType, Schemas
from tests.parts.kube_status import ApiError, Cause
from tests.parts.kube_store import Object, now, with_metadata

_SUFFIX_LETTERS: Final = "bcdfghjklmnpqrstvwxz2456789"
_SET_BY_SERVER: Final = ("uid", "creationTimestamp", "deletionTimestamp", "generation", "managedFields")
_KEPT_BY_SERVER: Final = (
    *_SET_BY_SERVER,
    "deletionGracePeriodSeconds",
    "name",
    "namespace",
    "resourceVersion",
)


@dataclass(frozen=True)
class ApiCall:
    """One request, read: /apis/batch/v1/namespaces/{namespace}/jobs/{name}/{subresource}."""

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


def parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise ApiError(400, f"the object provided is unrecognized (must be JSON): {error}") from error


class Changes:
    """All methods raise ApiError with what the real server answers."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def decoded(self, call: ApiCall, value: Any) -> tuple[Object, dict[str, str]]:
        """Return the object by the schema, and the Warning header for fields that it dropped."""
        if not isinstance(value, dict):
            raise ApiError(400, "the object provided is unrecognized: it must be an object with a kind")
        kind, expected = call.resource.kind, call.resource.api_version
        version = value.get("apiVersion", expected)
        if value.get("kind", kind) != kind or version != expected:
            raise ApiError(
                400,
                f"{kind} in version {version} cannot be handled as a {kind}: the API version in the data"
                f" ({version}) does not match the expected API version ({expected})",
            )
        decoded = self._schemas.decode(call.resource, value)
        unknown = ", ".join(f'unknown field "{path}"' for path in decoded.unknown)
        if unknown and call.query.get("fieldValidation") == "Strict":
            raise ApiError(
                400,
                f'{kind} in version "v1" cannot be handled as a {kind}: strict decoding error: {unknown}',
            )
        if decoded.causes:
            name = value.get("metadata", {}).get("name", "")
            raise kube_status.invalid(kind, call.resource.group, name, decoded.causes)
        normal = ordered({**decoded.value, "kind": kind, "apiVersion": expected})
        if call.resource.group == "events.k8s.io":
            normal = kube_events.to_core_api(normal)
        warning = unknown.replace('"', '\\"')
        return normal, {"Warning": f'299 - "{warning}"'} if unknown else {}

    def new(self, call: ApiCall, value: Object) -> Object:
        """Complete a decoded object for its creation: name, defaults, no status."""
        metadata = value.setdefault("metadata", {})
        if call.resource.namespaced and metadata.setdefault("namespace", call.namespace) != call.namespace:
            raise ApiError(
                400,
                "the namespace of the provided object does not match the namespace sent on the request:"
                f" {metadata['namespace']} != {call.namespace}",
            )
        if metadata.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(
                secrets.choice(_SUFFIX_LETTERS) for _ in range(5)
            )
        for field in _SET_BY_SERVER:
            metadata.pop(field, None)
        faults = list(kube_rules.metadata_faults(call.resource, metadata))
        metadata["uid"] = str(uuid.uuid4())
        if call.resource.plural == "jobs" and not faults:
            kube_rules.complete_job(value)
            kube_rules.add_job_defaults(value["spec"])
            faults = list(kube_rules.job_faults(value))
        elif call.resource.plural == "pods":
            kube_rules.add_pod_defaults(value["spec"])
            value["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        _refuse(call, metadata.get("name", ""), faults)
        metadata["managedFields"] = [_managed(call, value)]
        return value

    def patched(self, call: ApiCall, old: Object) -> Object:
        """Return old with the patch in the call's body, by the call's content type."""
        patch = parsed(call.body)
        base = kube_events.to_new_api(old) if call.resource.group == "events.k8s.io" else old
        if call.content_type == "application/json-patch+json":
            try:
                new = jsonpatch.apply_patch(base, patch)
            except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
                raise ApiError(
                    422, f"the server rejected our request due to an error in our request: {error}"
                ) from error
        elif call.content_type == "application/merge-patch+json":
            new = _merge(base, patch)
        elif call.content_type == "application/strategic-merge-patch+json":
            new = self._schemas.strategic_merge(call.resource, base, patch)
        else:
            raise ApiError(
                415,
                f"the body of the request was in an unknown format - {call.content_type} is not supported by"
                " this server",
            )
        return self.merged(call, old, self.decoded(call, new)[0])

    def merged(self, call: ApiCall, old: Object, sent: Object) -> Object:
        """Return old with what this call may change taken from sent."""
        metadata, before = sent.get("metadata", {}), old["metadata"]
        if metadata.get("resourceVersion") not in (None, "", before["resourceVersion"]):
            raise kube_status.conflict(call.resource.qualified, call.name)
        if metadata.get("uid") not in (None, "", before["uid"]):
            raise kube_status.conflict(
                call.resource.qualified,
                call.name,
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta:"
                f" {before['uid']}",
            )
        kept = {name: before[name] for name in _KEPT_BY_SERVER if name in before}
        new = with_metadata({**sent, "metadata": metadata}, **kept)
        if "status" in call.resource.subresources:
            # The object itself and its status have an endpoint each, which leaves the other part alone.
            other = "spec" if call.subresource == "status" else "status"
            new[other] = old.get(other, {})
        faults = list(kube_rules.metadata_faults(call.resource, new["metadata"]))
        added = sorted(set(metadata.get("finalizers", ())) - set(before.get("finalizers", ())))
        if added and "deletionTimestamp" in before:
            found = ", ".join(f'"{name}"' for name in added)
            faults.append(
                Cause(
                    "FieldValueForbidden",
                    "metadata.finalizers",
                    "Forbidden: no new finalizers can be added if the object is being deleted, found new"
                    f" finalizers []string{{{found}}}",
                )
            )
        if call.resource.plural == "jobs":
            kube_rules.add_job_defaults(new["spec"])
            faults += kube_rules.job_faults(new)
            faults += kube_rules.job_update_faults(old, new)
        _refuse(call, call.name, faults)
        return ordered(new)

    @staticmethod
    def check_update(call: ApiCall, sent: Object) -> None:
        """Refuse a PUT to another name, and one of a Lease that names no version."""
        metadata = sent.get("metadata", {})
        if metadata.get("name") != call.name:
            raise ApiError(
                400,
                f"the name of the object ({metadata.get('name', '')}) does not match the name on the URL"
                f" ({call.name})",
            )
        if call.resource.plural == "leases" and not metadata.get("resourceVersion"):
            must = "Invalid value: 0: must be specified for an update"
            _refuse(call, call.name, [Cause("FieldValueInvalid", "metadata.resourceVersion", must)])


def _refuse(call: ApiCall, name: str, faults: list[Cause]) -> None:
    if faults:
        raise kube_status.invalid(call.resource.kind, call.resource.group, name, faults)


def ordered(value: Object) -> Object:
    """kind and apiVersion first: a list cuts them off its items."""
    rest = {name: item for name, item in value.items() if name not in ("kind", "apiVersion")}
    return {"kind": value["kind"], "apiVersion": value["apiVersion"], **rest}


def _merge(value: Any, patch: Any) -> Any:
    """Merge as RFC 7396 says."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for name, item in patch.items():
        if item is None:
            result.pop(name, None)
        else:
            result[name] = _merge(result.get(name), item)
    return result


def _managed(call: ApiCall, value: Object) -> dict[str, Any]:
    """Who set which fields: nothing here reads it, but it is half of what a real object weighs."""
    return {
        "manager": call.query.get("fieldManager") or call.user_agent.partition("/")[0],
        "operation": "Update",
        "apiVersion": call.resource.api_version,
        "time": now(),
        "fieldsType": "FieldsV1",
        "fieldsV1": dict(_field_set(value)),
    }


def _field_set(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        yield f"f:{name}", dict(_field_set(item)) if isinstance(item, dict) else {}
