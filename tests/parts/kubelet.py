"""The scheduler and the kubelet: what happens to a pod, and the Events that tell of it."""

import secrets
from collections.abc import Callable
from typing import Any, Final

from tests.parts import pod_states
from tests.parts.api_server import ApiServer
from tests.parts.kube_schema import RESOURCES
from tests.parts.kube_store import Object, now

PODS: Final = next(resource for resource in RESOURCES if resource.plural == "pods")
_EVENTS: Final = next(resource for resource in RESOURCES if resource.qualified == "events")
_FROM: Final = {"Job": "job-controller", "Pod": "kubelet"}


class Kubelet:
    """Acts on the pods of the server's namespace; raises LookupError where there is no such Job or pod."""

    def __init__(self, server: ApiServer) -> None:
        self.store = server.store
        self.namespace = server.namespace
        self._logs = server.logs

    def schedule(self, pod_name: str) -> None:
        self.change_pod(pod_name, pod_states.scheduled)

    def run(self, pod_name: str) -> None:
        self.change_pod(pod_name, pod_states.running)

    def wait_with(self, pod_name: str, reason: str, message: str) -> None:
        """Let the container wait with a reason, as for an image that cannot be pulled; with its Event."""
        if not self.pod(pod_name)["spec"].get("nodeName"):
            self.schedule(pod_name)
        self.change_pod(pod_name, lambda pod: pod_states.waiting(pod, reason, message))
        self.event(pod_name, "BackOff" if reason == "ImagePullBackOff" else "Failed", message)

    def unschedulable(self, pod_name: str, message: str) -> None:
        self.change_pod(pod_name, lambda pod: pod_states.unschedulable(pod, message))
        self.record(self.pod(pod_name), "FailedScheduling", message, source="default-scheduler")

    def event(self, pod_name: str, reason: str, message: str, kind: str = "Warning") -> None:
        self.record(self.pod(pod_name), reason, message, kind)

    def exit(self, pod_name: str, exit_code: int, message: str = "", reason: str = "") -> None:
        """End a pod's container; the Job controller has not looked yet."""
        self.change_pod(pod_name, lambda pod: pod_states.exited(pod, exit_code, message, reason))

    def write_log(self, pod_name: str, text: str) -> None:
        self._logs.write(self.namespace, pod_name, text)

    def job(self, name: str) -> Object:
        return self._found("jobs", name)

    def pod(self, name: str) -> Object:
        return self._found("pods", name)

    def pods(self, job_name: str) -> list[Object]:
        """Return a Job's pods, the oldest first."""
        uid = self.job(job_name)["metadata"]["uid"]
        return [stored.value for stored in self.store.dependents("pods", uid)]

    def _found(self, plural: str, name: str) -> Object:
        stored = self.store.get(plural, (self.namespace, name))
        if stored is None:
            raise LookupError(f"there is no {name} among the {plural}")
        return stored.value

    def change_pod(self, name: str, change: Callable[[Object], Object]) -> None:
        self.store.replace(PODS, (self.namespace, name), change)

    def record(
        self, about: Object, reason: str, message: str, kind: str = "Warning", source: str = ""
    ) -> None:
        component = source or _FROM[about["kind"]]
        name = f"{about['metadata']['name']}.{secrets.token_hex(8)}"
        involved = {"kind": about["kind"], "apiVersion": about["apiVersion"], "namespace": self.namespace}
        involved |= {field: about["metadata"][field] for field in ("name", "uid", "resourceVersion")}
        event: dict[str, Any] = {
            "kind": "Event",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": self.namespace},
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "source": {"component": component},
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "count": 1,
            "type": kind,
            "eventTime": None,
            "reportingComponent": component,
            "reportingInstance": "",
        }
        self.store.create(_EVENTS, (self.namespace, name), event)
