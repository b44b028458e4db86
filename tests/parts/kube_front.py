"""The way of a request through the API server: token, faults, permissions, then the verb; all are logged."""

import time
from dataclasses import dataclass
from typing import Any, Final

from tests.parts.http_server import DropConnectionError, HttpRequest, HttpResponse, json_response
from tests.parts.kube_calls import ApiCall, parsed
from tests.parts.kube_faults import FaultQueue
from tests.parts.kube_logs import Logs
from tests.parts.kube_routes import allows, discovery, read_call
from tests.parts.kube_schema import Schemas
from tests.parts.kube_status import ApiError, forbidden
from tests.parts.kube_store import Store
from tests.parts.kube_verbs import Verbs
from tests.parts.kube_watch import Watches

ADMIN_TOKEN: Final = "admin-token"
_ADMIN: Final = "system:admin"
_REVIEWS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True)
class ApiRequest:
    """One answered request; status is 0 where the connection was cut instead."""

    verb: str
    target: str
    namespace: str
    name: str
    status: int
    user: str
    query: dict[str, str]
    content_type: str
    body: bytes
    monotonic: float
    """time.monotonic() at arrival."""
    seconds: float
    """Until the answer; for a watch, until its stream began."""


class Front:
    def __init__(self, store: Store, schemas: Schemas, tokens: dict[str, str]) -> None:
        self.store = store
        self.verbs = Verbs(store, schemas)
        self.watches = Watches(store)
        self.logs = Logs(store)
        self.faults = FaultQueue()
        self.tokens = tokens
        """Bearer token to user name."""
        self.rules: list[dict[str, Any]] | None = None
        """As in a Role; None allows everything."""
        self.requests: list[ApiRequest] = []

    def handle_as_admin(self, request: HttpRequest) -> HttpResponse:
        return self.handle(request, as_admin=True)

    def handle(self, request: HttpRequest, as_admin: bool = False) -> HttpResponse:
        arrived, status, call, user = time.monotonic(), 0, None, ""
        try:
            user = _ADMIN if as_admin else self._user(request)
            document = discovery(request.path)
            if document is not None:
                response = json_response(document)
            elif request.path in ("/healthz", "/livez", "/readyz"):
                response = HttpResponse(body=b"ok", content_type="text/plain")
            elif request.path == _REVIEWS:
                response = self._review(request, user)
            else:
                call = read_call(request)
                response = self._spoiled(call, user)
            status = response.status
        except ApiError as error:
            response = json_response(error.status(), error.code)
            status = error.code
        finally:
            self.requests.append(
                ApiRequest(
                    verb=call.verb if call else request.method.lower(),
                    target=call.target if call else request.path,
                    namespace=call.namespace if call else "",
                    name=call.name if call else "",
                    status=status,
                    user=user,
                    query=request.query,
                    content_type=request.headers.get("content-type", ""),
                    body=request.body,
                    monotonic=arrived,
                    seconds=time.monotonic() - arrived,
                )
            )
        return response

    def _user(self, request: HttpRequest) -> str:
        # The client says `bearer` in a cluster, and `Bearer` from a kubeconfig; the real server takes both.
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token if scheme.lower() == "bearer" else ""
        user = _ADMIN if token == ADMIN_TOKEN else self.tokens.get(token)
        if user is None:
            raise ApiError(401, "Unauthorized")
        return user

    def _spoiled(self, call: ApiCall, user: str) -> HttpResponse:
        """Answer a call, or what the first fault that matches makes of it."""
        fault = None
        if user != _ADMIN:
            fault = self.faults.take(call.verb, call.target, call.name, call.body)
        if fault is None:
            return self._answer(call, user)
        released = self.faults.released
        if fault.after:
            self._answer(call, user)
        if fault.hang:
            released.wait()
        if fault.hang or fault.reset:
            raise DropConnectionError
        code = fault.status or 500
        if fault.body is not None:
            return HttpResponse(code, fault.body, fault.headers, "text/plain")
        return json_response(ApiError(code, f"injected fault {code}").status(), code, fault.headers)

    def _answer(self, call: ApiCall, user: str) -> HttpResponse:
        if not self._allowed(user, call.verb, call.resource.group, call.target, call.name):
            where = f' in the namespace "{call.namespace}"' if call.namespace else " at the cluster scope"
            raise forbidden(
                call.resource.qualified,
                call.name,
                f'User "{user}" cannot {call.verb} resource "{call.target}" in API group'
                f' "{call.resource.group}"{where}',
            )
        if call.subresource == "log":
            return self.logs.answer(call)
        return self.watches.answer(call) if call.verb == "watch" else self.verbs.answer(call)

    def _allowed(self, user: str, verb: str, group: str, target: str, name: str) -> bool:
        return user == _ADMIN or self.rules is None or allows(self.rules, verb, group, target, name)

    def _review(self, request: HttpRequest, user: str) -> HttpResponse:
        """Answer `kubectl auth can-i`."""
        review = parsed(request.body)
        asked = review["spec"].get("resourceAttributes") or {}
        target = "/".join(filter(None, (asked.get("resource"), asked.get("subresource"))))
        allowed = self._allowed(
            user, asked.get("verb", ""), asked.get("group", ""), target, asked.get("name", "")
        )
        return json_response({"metadata": {}, **review, "status": {"allowed": allowed}}, 201)
