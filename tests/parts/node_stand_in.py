"""Plays scheduler and kubelet over the API, for a cluster without nodes: no container runs.

    with NodeStandIn(api, namespace) as pods:
        pod = pods.start("job")                     the Job's pod is bound to a pretended node and runs
        pods.finish("job", 0, message)              its container ends: exit code and termination message
        pods.finish("job", 137, reason="OOMKilled")
        pods.wait_with("job", "ImagePullBackOff", 'Back-off pulling image "x"')
        pods.write_log(pod, "epoch 1/10 ...")       what pods/log answers
        pods.disrupt("job", exit_code=75)           marked, deleted, ended: as for a pod of higher priority

Each waits until the cluster's Job controller has made the pod, which after a failure takes its back-off.
Deleted pods end by themselves, in a thread, as by SIGTERM. What is written into a pod's status is in
pod_states.py, which the Job controller of the tests' own API server shares.
"""

import threading
from collections.abc import Callable
from typing import Any, Final, Self

from kubernetes import client

from tests.parts import pod_states
from tests.parts.container_logs import ContainerLogs
from tests.parts.kube_store import Object
from tests.parts.waiting import wait_for

_LOOK_SECONDS: Final = 0.1
_MERGE: Final = "application/merge-patch+json"
_SIGTERM_EXIT: Final = 143
_SIGKILL_EXIT: Final = 137


class NodeStandIn:
    """Acts on the pods of one namespace, in the administrator's name.

    write_log takes a pod's name and lines of its log, where the API server keeps the logs itself. A real one
    asks the node for them, which this one then answers.
    """

    def __init__(self, api: Any, namespace: str, write_log: Callable[[str, str], None] | None = None) -> None:
        self._api = api
        self._core = client.CoreV1Api(api)
        self._namespace = namespace
        self._exit_codes: dict[str, int] = {}
        """What the pods that are deleted end with; SIGTERM's unless a test says otherwise."""
        self._logs: ContainerLogs | None = None
        if write_log is None:
            self._logs = ContainerLogs()
            write_log = self._logs.write
        self._write_log = write_log
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._end_deleted_pods)

    def __enter__(self) -> Self:
        try:
            self._core.create_node({"metadata": {"name": pod_states.NODE}})
        except client.ApiException as error:
            if error.status != 409:  # there from a test that was cut off
                raise
        if self._logs:
            status = {
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self._logs.port}},
            }
            self._core.patch_node_status(pod_states.NODE, {"status": status}, _content_type=_MERGE)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join()
        # Nobody else would end what is bound to this node.
        self._core.delete_collection_namespaced_pod(self._namespace, grace_period_seconds=0)
        self._core.delete_node(pod_states.NODE)
        if self._logs:
            self._logs.close()

    def runnable(self, job: Object) -> Object:
        """Return the Job as this node runs it: as it is."""
        return job

    def start(self, job_name: str, timeout: float = 60) -> str:
        """Return the name of the Job's pod, which runs now.

        Raises:
            TimeoutError: the Job has no pod that has not ended.
        """
        pod = self._bound_pod(job_name, timeout)
        self._write_status(pod_states.running(pod))
        return str(pod["metadata"]["name"])

    def finish(self, job_name: str, exit_code: int = 0, message: str = "", reason: str = "") -> None:
        """End the Job's pod; one that does not run yet is started."""
        name = self.start(job_name)
        self._change(name, lambda pod: pod_states.exited(pod, exit_code, message, reason))

    def wait_with(self, job_name: str, reason: str, message: str) -> None:
        self._write_status(pod_states.waiting(self._bound_pod(job_name), reason, message))

    def write_log(self, pod: str, text: str) -> None:
        self._write_log(pod, text)

    def disrupt(self, job_name: str, exit_code: int = _SIGTERM_EXIT) -> None:
        name = self.start(job_name)
        self._exit_codes[name] = exit_code
        why = "default-scheduler: preempting to accommodate a higher priority pod"
        self._change(name, lambda pod: pod_states.disrupted(pod, "PreemptionByScheduler", why))
        self._core.delete_namespaced_pod(name, self._namespace)

    def pods(self, job_name: str = "") -> list[Object]:
        """Return the pods of a Job, or all."""
        selector = f"batch.kubernetes.io/job-name={job_name}" if job_name else ""
        listed = self._core.list_namespaced_pod(self._namespace, label_selector=selector)
        return [dict(self._api.sanitize_for_serialization(pod)) for pod in listed.items]

    def _bound_pod(self, job_name: str, timeout: float = 60) -> Object:
        """Return the Job's pod that has not ended, on the node."""
        pods = wait_for(
            lambda: [pod for pod in self.pods(job_name) if _may_run(pod)],
            timeout,
            f"the Job {job_name} has a pod that can run",
        )
        pod, name = pods[0], pods[0]["metadata"]["name"]
        if pod["spec"].get("nodeName"):
            return pod
        target = {"apiVersion": "v1", "kind": "Node", "name": pod_states.NODE}
        # The client makes no V1Binding of the answer, which is a Status.
        self._core.create_namespaced_pod_binding(
            name, self._namespace, {"metadata": {"name": name}, "target": target}, _preload_content=False
        )
        return self._change(name, pod_states.scheduled)

    def _change(self, name: str, change: Callable[[Object], Object]) -> Object:
        pod = self._core.read_namespaced_pod(name, self._namespace)
        return self._write_status(change(dict(self._api.sanitize_for_serialization(pod))))

    def _write_status(self, pod: Object) -> Object:
        self._core.patch_namespaced_pod_status(
            pod["metadata"]["name"], self._namespace, {"status": pod["status"]}, _content_type=_MERGE
        )
        return pod

    def _end_deleted_pods(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            for pod in self.pods():
                if "deletionTimestamp" in pod["metadata"]:
                    try:
                        self._end(pod)
                    except client.ApiException as error:
                        if error.status not in (
                            404,
                            409,
                        ):  # gone, or changed meanwhile: the next look sees it
                            raise

    def _end(self, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if pod_states.is_running(pod):
            code = self._exit_codes.get(name, _SIGTERM_EXIT)
            self._write_status(pod_states.exited(pod, code, ""))
        elif not pod_states.is_finished(pod):
            self._write_status(pod_states.exited(pod, _SIGKILL_EXIT, "", "ContainerStatusUnknown"))
        if pod["metadata"].get("deletionGracePeriodSeconds"):
            # Said for good; the Job controller's finalizer may still hold it.
            self._core.delete_namespaced_pod(name, self._namespace, grace_period_seconds=0)


def _may_run(pod: Object) -> bool:
    return not pod_states.is_finished(pod) and "deletionTimestamp" not in pod["metadata"]
