"""What a create, update or patch makes of an object, and what the API server refuses of it."""

import json
import secrets
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import jsonpatch

from tests.parts import kube_defaults, kube_events, kube_rules, kube_status
from tests.parts.kube_calls import ApiCall, parsed
from tests.parts.kube_schema import Schemas
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


class Sent(NamedTuple):
    """An object as it came, by the schema."""

    value: Object
    warnings: dict[str, str]
    """The header that names the fields that were dropped."""
    faults: list[Cause]
    """What the schema finds fault with."""


class Changes:
    """All methods raise ApiError with what the real server answers."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def sent(self, call: ApiCall) -> Sent:
        """Return the object that a create or an update brings."""
        if call.content_type not in ("", "application/json"):
            raise ApiError(
                415,
                "the body of the request was in an unknown format - accepted media types include:"
                " application/json, application/yaml, application/vnd.kubernetes.protobuf",
            )
        return self._decoded(call, parsed(call.body))

    def _decoded(self, call: ApiCall, value: Any) -> Sent:
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
        unknown = [f'unknown field "{path}"' for path in decoded.unknown]
        if unknown and call.query.get("fieldValidation") == "Strict":
            raise ApiError(
                400,
                f'{kind} in version "v1" cannot be handled as a {kind}: strict decoding error:'
                f" {', '.join(unknown)}",
            )
        normal = ordered({**decoded.value, "kind": kind, "apiVersion": expected})
        if call.resource.group == "events.k8s.io":
            normal = kube_events.to_core_api(normal)
        warnings = ", ".join(warning(text) for text in unknown)
        shown = bool(unknown) and call.query.get("fieldValidation") != "Ignore"
        return Sent(normal, {"Warning": warnings} if shown else {}, decoded.causes)

    def new(self, call: ApiCall, sent: Sent) -> Object:
        """Complete an object for its creation: name, defaults, no status."""
        value = sent.value
        metadata = value.setdefault("metadata", {})
        if call.resource.namespaced and metadata.setdefault("namespace", call.namespace) != call.namespace:
            raise ApiError(
                400,
                "the namespace of the provided object does not match the namespace sent on the request:"
                f" {metadata['namespace']} != {call.namespace}",
            )
        if metadata.get("resourceVersion"):
            raise ApiError(500, "resourceVersion should not be set on objects to be created", "")
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + "".join(
                secrets.choice(_SUFFIX_LETTERS) for _ in range(5)
            )
        for field in _SET_BY_SERVER:
            metadata.pop(field, None)
        metadata["uid"] = str(uuid.uuid4())
        if call.resource.plural == "jobs":
            kube_defaults.complete_job(value)
        elif call.resource.plural == "pods":
            value["status"] = {"phase": "Pending", "qosClass": "BestEffort"}
        elif call.resource.plural == "resourcequotas":
            value["status"] = {"hard": value.get("spec", {}).get("hard", {})}
        self._check(call, value, sent.faults)
        metadata["managedFields"] = [_managed(call, value)]
        return value

    def patched(self, call: ApiCall, old: Object) -> tuple[Object, dict[str, str]]:
        """Return old with the patch in the call's body, and the header that names unknown fields."""
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
        if not isinstance(patch, list if call.content_type == "application/json-patch+json" else dict):
            raise ApiError(400, "json: cannot unmarshal the patch: it is of another type")
        try:
            sent = self._decoded(call, new)
        except ApiError as error:
            cause = Cause("FieldValueInvalid", "patch", f"Invalid value: {json.dumps(new)}: {error}")
            raise kube_status.invalid("", "", "", [cause]) from error
        metadata = sent.value["metadata"]
        _check_name(call, metadata)
        if metadata.get("uid") != old["metadata"]["uid"]:
            immutable = f'Invalid value: "{metadata.get("uid", "")}": field is immutable'
            _refuse(call, call.name, [Cause("FieldValueInvalid", "metadata.uid", immutable)])
        return self.merged(call, old, sent), sent.warnings

    def merged(self, call: ApiCall, old: Object, sent: Sent) -> Object:
        """Return old with what this call may change taken from sent."""
        metadata, before = sent.value.get("metadata", {}), old["metadata"]
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
        new = with_metadata({**sent.value, "metadata": metadata}, **kept)
        if "status" in call.resource.subresources:
            # The object itself and its status have an endpoint each, which leaves the other part alone.
            other = "spec" if call.subresource == "status" else "status"
            new[other] = old.get(other, {})
        faults = sent.faults
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
        self._check(call, new, faults, old)
        return ordered(new)

    @staticmethod
    def _check(call: ApiCall, value: Object, faults: list[Cause], old: Object | None = None) -> None:
        """Add the defaults, then refuse what is wrong: faults that are known, and those of the rules."""
        # A Job without a template gets an empty one, whose faults are others.
        found = [fault for fault in faults if fault.field != "spec.template"]
        found += kube_rules.metadata_faults(call.resource, value["metadata"])
        match call.resource.plural:
            case "jobs":
                kube_defaults.add_job_defaults(value.setdefault("spec", {}))
                found += kube_rules.job_faults(value)
                if old is not None:
                    found += kube_rules.job_update_faults(old, value)
            case "pods":
                kube_defaults.add_pod_defaults(value.setdefault("spec", {}))
                kube_defaults.add_requests(value["spec"])
                kube_defaults.add_probe_times(value["status"])
            case "events":
                kube_defaults.add_event_defaults(value)
                found += kube_rules.event_faults(value)
            case "leases":
                found += kube_rules.lease_faults(value)
        _refuse(call, value["metadata"].get("name", ""), found)

    @staticmethod
    def check_update(call: ApiCall, sent: Object) -> None:
        """Refuse a PUT to another name, and one of a Lease that names no version."""
        metadata = sent.get("metadata", {})
        _check_name(call, metadata)
        if call.resource.plural == "leases" and not metadata.get("resourceVersion"):
            must = "Invalid value: 0: must be specified for an update"
            cause = Cause("FieldValueInvalid", "metadata.resourceVersion", must)
            raise kube_status.invalid(call.resource.plural, call.resource.group, call.name, [cause])


def warning(text: str) -> str:
    """Return a text as a Warning header has it."""
    escaped = text.replace('"', '\\"')
    return f'299 - "{escaped}"'


def _check_name(call: ApiCall, metadata: Mapping[str, Any]) -> None:
    name = metadata.get("name", "")
    if name != call.name:
        raise ApiError(
            400, f"the name of the object ({name}) does not match the name on the URL ({call.name})"
        )


def _refuse(call: ApiCall, name: str, causes: list[Cause]) -> None:
    faults = list({(cause.reason, cause.field): cause for cause in causes}.values())
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
