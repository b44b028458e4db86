"""Asks an API server in plain HTTP: what the official client would not send, or hides of the answer."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

import urllib3

_GROUPS: Final = {
    "jobs": "apis/batch/v1",
    "cronjobs": "apis/batch/v1",
    "leases": "apis/coordination.k8s.io/v1",
}
_KINDS: Final = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}


@dataclass(frozen=True)
class Answer:
    """status is 0 for an event of a watch, whose type is in kind."""

    status: int
    kind: str
    """The media type, or the event's type."""
    warning: str | None
    body: Any


class Asker:
    """One user of one namespace; `api` is a kubernetes.client.ApiClient, for the way there."""

    def __init__(self, api: Any, namespace: str) -> None:
        configuration = api.configuration
        self._host = configuration.host
        self._http = urllib3.PoolManager(
            ca_certs=configuration.ssl_ca_cert,
            cert_reqs="CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
            cert_file=configuration.cert_file,
            key_file=configuration.key_file,
            retries=False,
            timeout=30,
        )
        settings = configuration.auth_settings()  # none for a client certificate
        self._headers = {setting["key"]: setting["value"] for setting in settings.values()}
        self.namespace = namespace

    def create(self, plural: str, body: Any, **query: str) -> Answer:
        return self.ask("POST", self.path(plural), body, query=query)

    def create_object(self, manifest: Any) -> Answer:
        """Create an object of any kind whose plural ends in s or ies."""
        version, kind = manifest["apiVersion"], manifest["kind"].lower()
        plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
        root = f"apis/{version}" if "/" in version else f"api/{version}"
        return self.ask("POST", f"/{root}/namespaces/{self.namespace}/{plural}", manifest)

    def get(self, plural: str, name: str) -> Answer:
        return self.ask("GET", self.path(plural, name))

    def all(self, plural: str, **query: str) -> Answer:
        return self.ask("GET", self.path(plural), query=query)

    def update(self, plural: str, name: str, body: Any) -> Answer:
        return self.ask("PUT", self.path(plural, name), body)

    def patch(self, plural: str, name: str, body: Any, kind: str = "merge") -> Answer:
        return self.ask("PATCH", self.path(plural, name), body, _KINDS.get(kind, kind))

    def delete(self, plural: str, name: str, options: Any = None, **query: str) -> Answer:
        return self.ask("DELETE", self.path(plural, name), options, query=query)

    def watch(self, plural: str, **query: str) -> list[Answer]:
        """Return the events of a watch that ends by its timeoutSeconds."""
        answer = self.ask("GET", self.path(plural), query={"watch": "true", **query})
        if answer.status != 200:
            return [answer]
        one = isinstance(answer.body, dict)  # whose line was read as the whole body
        events = [answer.body] if one else [json.loads(line) for line in answer.body.splitlines()]
        return [Answer(0, event["type"], None, event["object"]) for event in events]

    def path(self, plural: str, *rest: str) -> str:
        group = _GROUPS.get(plural, "api/v1")
        return "/".join(("", group, "namespaces", self.namespace, plural, *rest))

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        content_type: str = "application/json",
        query: Mapping[str, str] | None = None,
        token: str | None = None,
    ) -> Answer:
        """A body of bytes is sent as it is, everything else as JSON."""
        headers = {**self._headers, "Content-Type": content_type}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        url = self._host + path + ("?" + urlencode(query) if query else "")
        response = self._http.request(method, url, body=data, headers=headers)
        try:
            value = response.json()
        except ValueError:
            value = response.data.decode()
        media = response.headers.get("Content-Type", "").partition(";")[0]
        return Answer(response.status, media, response.headers.get("Warning"), value)
