"""An API server on a socket that behaves as Kubernetes 1.36 does, for Jobs and what belongs to them.

    with ApiServer() as server:
        kubernetes.client.BatchV1Api(server.client())    a real client with the dispatcher's token
        server.client(admin=True)                        one that RBAC rules and faults do not touch
        server.kubeconfig(folder / "kubeconfig")         writes the file, returns its path; with admin=True
                                                         one that kubectl can use
        server.url, server.token, server.namespace       the namespace exists; "default" unless told otherwise

Served: namespaces, nodes, pods (status, log), events (v1 and events.k8s.io/v1), configmaps, secrets, leases,
serviceaccounts, resourcequotas (counts of objects), persistentvolumeclaims, jobs, cronjobs,
selfsubjectaccessreviews; get, list (selectors, limit and continue), watch (bookmarks, timeoutSeconds, 410),
create, update, patch (json, merge, strategic), delete (propagationPolicy, preconditions, grace),
deletecollection; pods/binding, /version, /healthz and discovery for kubectl. test_conformance.py compares it
with the real server.
Not served: server-side apply, admission webhooks, protobuf. Pods come from job_controller.py.

What is there, as copies:
    server.get("jobs", name), server.all("jobs")     one dict or None, a list of dicts
    server.wait_for(lambda: server.get("jobs", "x"), timeout=10)     the first true value, or TimeoutError
    server.put(object)                               stores a Pod, Node, ... with its status, as no client can
    server.write_log(pod_name, "epoch 1/10 ...")     lines for pods/log

Faults, for every user but the administrator (kube_faults.py has the fields):
    server.inject(Fault(429, verb="create", resource="jobs", headers={"Retry-After": "1"}, times=3))
    server.inject(Fault(reset=True, after=True, verb="create"))      committed, and the connection is cut
    server.clear_faults(), server.release_hangs()
    server.compact(gone_as_status=False)             410 for watches and pages from older versions
    server.end_watches("close")                      or "reset", or "expire": a 410 event in the stream
    server.silence_watches(), server.resume_watches()    open and mute; then all that was missed
    server.bookmark_interval = 0.2                   seconds; 60 unless set
    server.cut_connections(); server.stop(), server.start()      on the same port, objects are kept

Access:
    server.tokens = {"new-token": DISPATCHER}        rotates: other tokens get 401
    server.rules = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create"]}]
                                                     403 for the rest, for all users; None allows everything
    server.job_quota = 5                             403 "exceeded quota" for the sixth Job

What was asked:
    server.requests                                  list[ApiRequest], the administrator's too (see its user)
    server.count("create", "jobs"), server.open_watches
"""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from kubernetes import client as kubernetes_client

from tests.parts.http_server import HttpServer
from tests.parts.kube_changes import ordered
from tests.parts.kube_faults import Fault
from tests.parts.kube_front import ADMIN_TOKEN, ApiRequest, Front
from tests.parts.kube_schema import RESOURCES, Schemas
from tests.parts.kube_store import Store

__all__ = ["DISPATCHER", "ApiRequest", "ApiServer", "Fault"]

DISPATCHER: Final = "system:serviceaccount:default:dispatcher"
_SCHEMAS: Final = Schemas()  # read from disk once, on first use

_QUOTAS: Final = next(resource for resource in RESOURCES if resource.plural == "resourcequotas")

T = TypeVar("T")


class ApiServer(Front):
    def __init__(self, token: str = "dispatcher-token", namespace: str = "default") -> None:
        super().__init__(Store(), _SCHEMAS, {token: DISPATCHER})
        self.token = token
        self.namespace = namespace
        self._server = HttpServer(self.handle)
        # kubectl sends no token over plain HTTP, so whoever comes here is the administrator.
        self._admin_server = HttpServer(self.handle_as_admin)
        self.put({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": namespace}})
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server.start()
        self._admin_server.start()

    def stop(self) -> None:
        """Refuse connections from now on and cut those that are open."""
        self.faults.release_hangs()
        self._server.stop()
        self._admin_server.stop()
        self.watches.end("reset")

    def cut_connections(self) -> None:
        self._server.cut_connections()

    # For clients

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    @property
    def port(self) -> int:
        return self._server.port

    def client(self, admin: bool = False) -> Any:
        """Return a kubernetes.client.ApiClient."""
        configuration = kubernetes_client.Configuration(host=self.url)
        configuration.api_key["authorization"] = f"Bearer {ADMIN_TOKEN if admin else self.token}"
        return kubernetes_client.ApiClient(configuration)

    def kubeconfig(self, path: Path, token_file: Path | None = None, admin: bool = False) -> Path:
        """Write a kubeconfig with the token, or with a file that holds it and may be rotated.

        Only the administrator's works for kubectl, which sends no token over plain HTTP.
        """
        url = f"http://127.0.0.1:{self._admin_server.port}" if admin else self.url
        user = (
            {"tokenFile": str(token_file)} if token_file else {"token": ADMIN_TOKEN if admin else self.token}
        )
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": {"server": url}}],
            "users": [{"name": "tests", "user": user}],
            "contexts": [
                {
                    "name": "tests",
                    "context": {"cluster": "tests", "user": "tests", "namespace": self.namespace},
                }
            ],
            "current-context": "tests",
        }
        path.write_text(json.dumps(config, indent=1))  # YAML holds JSON
        return path

    # What is there

    def get(self, plural: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        stored = self.store.get(plural, (self.namespace if namespace is None else namespace, name))
        return copy.deepcopy(stored.value) if stored else None

    def all(self, plural: str) -> list[dict[str, Any]]:
        return [copy.deepcopy(stored.value) for stored in self.store.all(plural)]

    def put(self, value: dict[str, Any]) -> dict[str, Any]:
        """Create an object with the status that it holds, past RBAC and faults."""
        value = ordered(copy.deepcopy(value))
        resource = next(item for item in RESOURCES if item.kind == value["kind"])
        namespace = ""
        if resource.namespaced:
            namespace = value["metadata"].setdefault("namespace", self.namespace)
        key = (namespace, value["metadata"]["name"])
        return copy.deepcopy(self.store.create(resource, key, value).value)

    def wait_for(self, condition: Callable[[], T], timeout: float = 10) -> T:
        """Return condition's first true value, looking again at every change of an object.

        Raises:
            TimeoutError: there is none after timeout seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            version = self.store.version
            value = condition()  # without the lock: it may ask over HTTP
            if value:
                return value
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the API server has not come to the awaited state in {timeout} s")
            with self.store.changed:
                if self.store.version == version:
                    self.store.changed.wait(min(left, 0.1))

    def write_log(self, pod: str, text: str) -> None:
        self.logs.write(self.namespace, pod, text)

    # Faults

    def inject(self, fault: Fault) -> Fault:
        return self.faults.inject(fault)

    def clear_faults(self) -> None:
        self.faults.clear()

    def release_hangs(self) -> None:
        self.faults.release_hangs()

    def compact(self, gone_as_status: bool = False) -> None:
        self.watches.gone_as_status = gone_as_status
        self.store.compact()

    def end_watches(self, how: str = "close") -> None:
        self.watches.end(how)

    def silence_watches(self) -> None:
        self.watches.set_silent(True)

    def resume_watches(self) -> None:
        self.watches.set_silent(False)

    @property
    def open_watches(self) -> int:
        return self.watches.open

    @property
    def bookmark_interval(self) -> float:
        return self.watches.bookmark_interval

    @bookmark_interval.setter
    def bookmark_interval(self, seconds: float) -> None:
        self.watches.bookmark_interval = seconds

    @property
    def job_quota(self) -> int | None:
        """The most Jobs that the namespace may have, by a ResourceQuota."""
        quota = self.get("resourcequotas", "training")
        return int(quota["spec"]["hard"]["count/jobs.batch"]) if quota else None

    @job_quota.setter
    def job_quota(self, most: int) -> None:
        spec = {"hard": {"count/jobs.batch": str(most)}}
        if self.job_quota is None:
            self.put(
                {"kind": "ResourceQuota", "apiVersion": "v1", "metadata": {"name": "training"}, "spec": spec}
            )
        else:
            key = (self.namespace, "training")
            self.store.replace(_QUOTAS, key, lambda quota: {**quota, "spec": spec})

    def count(self, verb: str | None = None, target: str | None = None) -> int:
        return sum(
            verb in (None, request.verb) and target in (None, request.target) for request in self.requests
        )
