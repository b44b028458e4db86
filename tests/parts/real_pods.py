"""Pods that a node really runs, ended when a test says so: what node_stand_in.py is where there are nodes.

The trainer's container becomes a shell that waits for its exit code and last words in annotations of its
pod, which the kubelet writes into files (downward API). Any image with a POSIX shell will do.
"""

import copy
from typing import Any, Final

from kubernetes import client

from job_contract.names import CONTAINER_NAME
from tests.parts.kube_store import Object
from tests.parts.waiting import wait_for

_CODE: Final = "tests.example.com/exit-code"
_MESSAGE: Final = "tests.example.com/message"
_SCRIPT: Final = """
trap 'exit 143' TERM
until [ -s /end/code ]; do sleep 0.2; done
cat /end/message > /dev/termination-log
exit "$(cat /end/code)"
"""


class RealPods:
    """Acts on the pods of one namespace, in the administrator's name."""

    def __init__(self, api: Any, namespace: str, image: str) -> None:
        self._api = api
        self._core = client.CoreV1Api(api)
        self._namespace = namespace
        self._image = image

    def runnable(self, job: Object) -> Object:
        """Return the Job with a container that any node can run."""
        job = copy.deepcopy(job)
        spec = job["spec"]["template"]["spec"]
        files = [
            {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
            for path, annotation in (("code", _CODE), ("message", _MESSAGE))
        ]
        [trainer] = [item for item in spec["containers"] if item["name"] == CONTAINER_NAME]
        container = {
            "name": CONTAINER_NAME,
            "image": self._image,
            "command": ["/bin/sh", "-c", _SCRIPT],
            "env": trainer.get("env", []),
            "securityContext": trainer.get("securityContext", {}),
            "volumeMounts": [{"name": "end", "mountPath": "/end"}],
        }
        spec |= {"containers": [container], "volumes": [{"name": "end", "downwardAPI": {"items": files}}]}
        return job

    def start(self, job_name: str, timeout: float = 120) -> str:
        """Return the name of the Job's pod once it runs.

        Raises:
            TimeoutError: none does.
        """
        return wait_for(lambda: self._running(job_name), timeout, f"a pod of the Job {job_name} runs")

    def finish(self, job_name: str, exit_code: int = 0, message: str = "") -> None:
        """End the Job's pod by its own will."""
        annotations = {_CODE: str(exit_code), _MESSAGE: message}
        name = self.start(job_name)
        self._core.patch_namespaced_pod(name, self._namespace, {"metadata": {"annotations": annotations}})

    def disrupt(self, job_name: str, exit_code: int = 143) -> None:
        """Evict the Job's pod, as a drain of its node does; it ends with SIGTERM's code."""
        name = self.start(job_name)
        eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=name))
        self._core.create_namespaced_pod_eviction(name, self._namespace, eviction)

    def pods(self, job_name: str = "") -> list[Object]:
        """Return the pods of a Job, or all."""
        selector = f"batch.kubernetes.io/job-name={job_name}" if job_name else ""
        listed = self._core.list_namespaced_pod(self._namespace, label_selector=selector)
        return [dict(self._api.sanitize_for_serialization(pod)) for pod in listed.items]

    def _running(self, job_name: str) -> str | None:
        for pod in self.pods(job_name):
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]:
                return str(pod["metadata"]["name"])
        return None
