"""URLs of the API: which call a request is, and the discovery documents that kubectl asks for first."""

from typing import Any, Final

from tests.parts.http_server import HttpRequest
from tests.parts.kube_calls import ApiCall
from tests.parts.kube_schema import RESOURCES
from tests.parts.kube_status import ApiError, no_resource

_BY_PLACE: Final = {(resource.group, resource.plural): resource for resource in RESOURCES}
_VERBS: Final = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_VERB_OF_METHOD: Final = {"PUT": "update", "PATCH": "patch"}
VERSION: Final = {"major": "1", "minor": "36", "gitVersion": "v1.36.0", "platform": "linux/amd64"}


def read_call(request: HttpRequest) -> ApiCall:
    """Raises ApiError 404 where there is no such resource."""
    parts = request.path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1] if len(parts) > 1 else "", parts[3:])
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource, *more = [*rest, "", "", ""][:4] if rest else ["", "", "", ""]
    resource = _BY_PLACE.get((group, plural))
    known_subresource = resource is not None and (not subresource or subresource in resource.subresources)
    if resource is None or not known_subresource or (more and more[0]):
        raise no_resource()
    if name and resource.namespaced and not namespace:
        raise no_resource()
    return ApiCall(
        verb=_verb(request, name, subresource),
        resource=resource,
        namespace=namespace,
        name=name,
        subresource=subresource,
        query=request.query,
        content_type=request.headers.get("content-type", "").partition(";")[0].strip(),
        user_agent=request.headers.get("user-agent", ""),
        body=request.body,
    )


def _verb(request: HttpRequest, name: str, subresource: str) -> str:
    if request.method == "GET":
        if name:
            return "get"
        return "watch" if request.query.get("watch") in ("true", "True", "1") else "list"
    if request.method == "POST" and (not name or subresource == "binding"):
        return "create"
    if request.method == "DELETE":
        return "delete" if name else "deletecollection"
    if name and request.method in _VERB_OF_METHOD:
        return _VERB_OF_METHOD[request.method]
    raise ApiError(405, "the server does not allow this method on the requested resource", details={})


def discovery(path: str) -> dict[str, Any] | None:
    """Return the document at /version, /api, /apis, /api/v1 or /apis/{group}/v1; None elsewhere."""
    groups = sorted({resource.group for resource in RESOURCES} - {""})
    path = path.rstrip("/")
    if path == "/version":
        return VERSION
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        described = []
        for group in groups:
            version = {"groupVersion": f"{group}/v1", "version": "v1"}
            described.append({"name": group, "versions": [version], "preferredVersion": version})
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": described}
    if path == "/api/v1":
        return _resource_list("")
    for group in groups:
        if path == f"/apis/{group}/v1":
            return _resource_list(group)
    return None


def _resource_list(group: str) -> dict[str, Any]:
    resources = []
    for resource in RESOURCES:
        if resource.group == group:
            described: dict[str, Any] = {"name": resource.plural, "singularName": resource.kind.lower()}
            described |= {"namespaced": resource.namespaced, "kind": resource.kind, "verbs": _VERBS}
            resources.append(described)
            for subresource in resource.subresources:
                name = f"{resource.plural}/{subresource}"
                resources.append({**described, "name": name, "verbs": ["get", "patch", "update"]})
    version = f"{group}/v1" if group else "v1"
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def allows(rules: list[dict[str, Any]], verb: str, group: str, target: str, name: str) -> bool:
    """Say whether the rules of a Role (apiGroups, resources, verbs, resourceNames) allow a call."""
    return any(
        {verb, "*"} & set(rule["verbs"])
        and {group, "*"} & set(rule["apiGroups"])
        and {target, "*"} & set(rule["resources"])
        and (not rule.get("resourceNames") or name in rule["resourceNames"])
        for rule in rules
    )
