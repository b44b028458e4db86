"""The verbs of the API on one resource: what get, list, create, update, patch and delete answer."""

import base64
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from tests.parts import kube_events, kube_status
from tests.parts.http_server import HttpResponse, json_response
from tests.parts.kube_calls import ApiCall, parsed
from tests.parts.kube_changes import Changes, warning
from tests.parts.kube_schema import ResourceType, Schemas
from tests.parts.kube_selectors import Matcher, field_matcher, label_matcher
from tests.parts.kube_status import ApiError
from tests.parts.kube_store import Object, Store, Stored, now

_CONTINUE: Final = re.compile(rb"\d+:[0-9a-f]+")
_SUCCESS: Final = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
_LIST_HEAD: Final = ("kind", "apiVersion")
_PROPAGATIONS: Final = ("Background", "Foreground", "Orphan")
_PRECONDITIONS: Final = (
    ("uid", "UID", "deleted and then recreated"),
    ("resourceVersion", "ResourceVersion", "modified"),
)
_ORPHANS: Final = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove"
    " them or set propagationPolicy=Orphan to suppress this warning"
)


class Verbs:
    def __init__(self, store: Store, schemas: Schemas) -> None:
        self._store = store
        self._changes = Changes(schemas)
        self._pages: dict[str, tuple[int, list[Stored]]] = {}

    def answer(self, call: ApiCall) -> HttpResponse:
        """Raises ApiError."""
        match call.verb:
            case "get":
                return _object_response(call, self._present(call))
            case "list":
                return self._list(call)
            case "create" if call.subresource == "binding":
                return self._bind(call)
            case "create":
                return self._create(call)
            case "update":
                return self._update(call)
            case "patch":
                return self._patch(call)
            case "delete":
                return self._delete(call)
            case "deletecollection":
                return self._delete_collection(call)
            case verb:
                raise ApiError(
                    405, f"the server does not allow this method on the requested resource: {verb}"
                )

    def _present(self, call: ApiCall) -> Stored:
        stored = self._store.get(call.resource.plural, call.key)
        if stored is None:
            raise kube_status.not_found(call.resource.qualified, call.name)
        return stored

    def _list(self, call: ApiCall) -> HttpResponse:
        """A whole list, or a page of it: all pages are of the version of the first."""
        version, found = self._page(call) if call.query.get("continue") else self._snapshot(call)
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        limit = call.number("limit")
        if limit and len(found) > limit:
            following = base64.urlsafe_b64encode(f"{version}:{secrets.token_hex(8)}".encode()).decode()
            self._pages[following] = (version, found[limit:])
            metadata["continue"] = following
            if not call.query.get("labelSelector") and not call.query.get("fieldSelector"):
                metadata["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        head = {"kind": f"{call.resource.kind}List", "apiVersion": call.resource.api_version}
        head_text = json.dumps({**head, "metadata": metadata})[:-1].encode()
        items = b",".join(_list_item(call.resource, item) for item in found)
        return HttpResponse(body=head_text + b',"items":[' + items + b"]}")

    def _snapshot(self, call: ApiCall) -> tuple[int, list[Stored]]:
        matches, asked = selector(call), call.number("resourceVersion")
        with self._store.changed:
            version = self._store.version
            if asked > version:
                cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
                raise ApiError(
                    504,
                    f"Timeout: Too large resource version: {asked}, current: {version}",
                    details={"causes": [cause], "retryAfterSeconds": 1},
                )
            stored = self._store.all(call.resource.plural, call.namespace)
        return version, [item for item in stored if matches(item.value)]

    def _page(self, call: ApiCall) -> tuple[int, list[Stored]]:
        token = call.query["continue"]
        if not _CONTINUE.fullmatch(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))):
            raise ApiError(400, "invalid continue token: continue key is not valid")
        page = self._pages.get(token)
        if page is None or page[0] < self._store.compacted:
            raise ApiError(
                410,
                "The provided continue parameter is too old to display a consistent list result. You can"
                " start a new list without the continue parameter.",
            )
        return page

    def _create(self, call: ApiCall) -> HttpResponse:
        sent = self._changes.sent(call)
        if call.resource.namespaced and self._store.get("namespaces", ("", call.namespace)) is None:
            raise kube_status.not_found("namespaces", call.namespace)
        value = self._changes.new(call, sent)
        name = value["metadata"]["name"]
        with self._store.changed:
            # The real server's quota comes before it looks whether the name is taken.
            self._check_quota(call, name)
            if call.query.get("dryRun"):
                value["metadata"]["creationTimestamp"] = now()
                value["metadata"] |= {"generation": 1} if call.resource.has_generation else {}
                return json_response(value, 201, sent.warnings)
            stored = self._store.create(call.resource, (call.namespace, name), value)
        return _object_response(call, stored, 201, sent.warnings)

    def _check_quota(self, call: ApiCall, name: str) -> None:
        counted = f"count/{call.resource.qualified}"
        for quota in self._store.all("resourcequotas", call.namespace):
            limit = quota.value["spec"].get("hard", {}).get(counted)
            used = self._store.count(call.resource.plural, call.namespace)
            if limit is not None and used >= int(limit):
                raise kube_status.forbidden(
                    call.resource.qualified,
                    name,
                    f"exceeded quota: {quota.value['metadata']['name']}, requested: {counted}=1, used:"
                    f" {counted}={used}, limited: {counted}={limit}",
                )

    def _bind(self, call: ApiCall) -> HttpResponse:
        """Give a pod to a node, as the scheduler does."""
        node = parsed(call.body)["target"]["name"]
        bound = {"type": "PodScheduled", "status": "True", "lastProbeTime": None, "lastTransitionTime": now()}

        def change(pod: Object) -> Object:
            if pod["spec"].get("nodeName"):
                why = f'pod {call.name} is already assigned to node "{pod["spec"]["nodeName"]}"'
                raise kube_status.conflict("pods/binding", call.name, why)
            status = {**pod["status"], "conditions": [bound]}
            return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status}

        self._store.replace(call.resource, call.key, change)
        return json_response({**_SUCCESS, "code": 201}, 201)

    def _update(self, call: ApiCall) -> HttpResponse:
        sent = self._changes.sent(call)
        self._changes.check_update(call, sent.value)
        stored = self._store.replace(
            call.resource, call.key, lambda old: self._changes.merged(call, old, sent)
        )
        return _object_response(call, stored, 200, sent.warnings)

    def _patch(self, call: ApiCall) -> HttpResponse:
        warnings: dict[str, str] = {}

        def change(old: Object) -> Object:
            new, found = self._changes.patched(call, old)
            warnings.update(found)
            return new

        return _object_response(call, self._store.replace(call.resource, call.key, change), 200, warnings)

    def _delete(self, call: ApiCall) -> HttpResponse:
        options: dict[str, Any] = (parsed(call.body) if call.body.strip() else None) or {}
        grace = options.get("gracePeriodSeconds", call.query.get("gracePeriodSeconds"))
        # A Job's dependents are orphaned unless the caller says otherwise: batch/v1 kept that.
        default = "Orphan" if call.resource.plural == "jobs" else "Background"
        asked = options.get("propagationPolicy") or call.query.get("propagationPolicy")
        propagation = asked or default
        if propagation not in _PROPAGATIONS:
            causes = list(kube_status.not_supported("propagationPolicy", propagation, _PROPAGATIONS))
            raise kube_status.invalid("DeleteOptions", "meta.k8s.io", "", causes)
        headers = {"Warning": warning(_ORPHANS)} if default == "Orphan" and not asked else {}
        with self._store.changed:
            _check_preconditions(call, options.get("preconditions") or {}, self._present(call).value)
            stored = self._store.delete(
                call.resource, call.key, propagation, None if grace is None else int(grace)
            )
        if "deletionTimestamp" in stored.value["metadata"] or call.resource.plural == "pods":
            return _object_response(call, stored, 200, headers)
        details = {"name": call.name, "kind": call.resource.plural, "uid": stored.value["metadata"]["uid"]}
        if call.resource.group:
            details["group"] = call.resource.group
        return json_response({**_SUCCESS, "details": details}, 200, headers)

    def _delete_collection(self, call: ApiCall) -> HttpResponse:
        response, matches = self._list(call), selector(call)
        for stored in self._store.all(call.resource.plural, call.namespace):
            if matches(stored.value):
                self._delete(replace(call, verb="delete", name=stored.value["metadata"]["name"]))
        return response


def selector(call: ApiCall) -> Matcher:
    """Return the function of an object that the call's label and field selectors make."""
    labels = label_matcher(call.query.get("labelSelector", ""))
    fields = field_matcher(call.resource, call.query.get("fieldSelector", ""))
    return lambda item: labels(item) and fields(item)


def encoded(resource: ResourceType, stored: Stored) -> bytes:
    """Return an object in JSON, as the API of its resource shows it."""
    if resource.group == "events.k8s.io":
        return json.dumps(kube_events.to_new_api(stored.value)).encode()
    return stored.encoded


def _list_item(resource: ResourceType, stored: Stored) -> bytes:
    """The items of a list have neither kind nor apiVersion; both stand first in every object."""
    if resource.group == "events.k8s.io":
        event = kube_events.to_new_api(stored.value)
        return json.dumps({name: event[name] for name in event if name not in _LIST_HEAD}).encode()
    head = f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'.encode()
    return b"{" + stored.encoded.removeprefix(head)


def _object_response(
    call: ApiCall, stored: Stored, status: int = 200, headers: Mapping[str, str] | None = None
) -> HttpResponse:
    return HttpResponse(status, encoded(call.resource, stored), headers or {})


def _check_preconditions(call: ApiCall, preconditions: Mapping[str, str], value: Object) -> None:
    resource = call.resource
    for field, label, fate in _PRECONDITIONS:
        wanted, actual = preconditions.get(field), value["metadata"][field]
        if wanted and wanted != actual:
            kind = f"{resource.kind}.{resource.group}" if resource.group else resource.kind
            raise kube_status.conflict(
                kind,
                call.name,
                f"the {label} in the precondition ({wanted}) does not match the {label} in record ({actual})."
                f" The object might have been {fate}",
            )
