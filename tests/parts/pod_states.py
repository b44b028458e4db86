"""What the scheduler and the kubelet write into a pod's status; each function returns a changed copy."""

from typing import Any, Final

from tests.parts.kube_store import Object, now

NODE: Final = "gpu-node-1"
_ORDER: Final = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")


def is_finished(pod: Object) -> bool:
    return pod["status"].get("phase") in ("Succeeded", "Failed")


def is_running(pod: Object) -> bool:
    return bool(pod["status"].get("phase") == "Running")


def unschedulable(pod: Object, message: str) -> Object:
    """No node takes the pod; message is the scheduler's."""
    scheduled = _condition("PodScheduled", "False", "Unschedulable", message)
    return _with_status(pod, phase="Pending", conditions=[scheduled])


def scheduled(pod: Object) -> Object:
    """A node has the pod and its containers are being created."""
    conditions = [
        _condition("PodReadyToStartContainers", "False"),
        _condition("Initialized", "True"),
        _condition("Ready", "False", "ContainersNotReady"),
        _condition("ContainersReady", "False", "ContainersNotReady"),
        _condition("PodScheduled", "True"),
    ]
    pod = _with_status(
        {**pod, "spec": {**pod["spec"], "nodeName": NODE}},
        phase="Pending",
        startTime=now(),
        conditions=conditions,
    )
    return waiting(pod, "ContainerCreating", "")


def waiting(pod: Object, reason: str, message: str) -> Object:
    """The container waits: ContainerCreating, ErrImagePull, ImagePullBackOff, CreateContainerConfigError."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return _with_status(pod, containerStatuses=_containers(pod, state, ready=False))


def running(pod: Object) -> Object:
    conditions = [_condition(name, "True") for name in _ORDER]
    statuses = _containers(pod, {"running": {"startedAt": now()}}, ready=True)
    return _with_status(pod, phase="Running", conditions=conditions, containerStatuses=statuses)


def exited(pod: Object, exit_code: int, message: str, reason: str = "") -> Object:
    """The container has ended; reason is OOMKilled, or what follows from the exit code."""
    succeeded = exit_code == 0
    why = "PodCompleted" if succeeded else "PodFailed"
    conditions = [
        _condition("PodReadyToStartContainers", "False"),
        _condition("Initialized", "True", why if succeeded else ""),
        _condition("Ready", "False", why),
        _condition("ContainersReady", "False", why),
        _condition("PodScheduled", "True"),
    ]
    kept = [item for item in pod["status"].get("conditions", ()) if item["type"] == "DisruptionTarget"]
    before = pod["status"].get("containerStatuses", [{}])[0].get("state", {}).get("running", {})
    terminated: dict[str, Any] = {
        "exitCode": exit_code,
        "reason": reason or ("Completed" if succeeded else "Error"),
        "startedAt": before.get("startedAt", now()),
        "finishedAt": now(),
        "containerID": "containerd://" + "0" * 64,
    }
    if message:
        terminated["message"] = message
    return _with_status(
        pod,
        phase="Succeeded" if succeeded else "Failed",
        conditions=[*kept, *conditions],
        containerStatuses=_containers(pod, {"terminated": terminated}, ready=False),
    )


def evicted(pod: Object, message: str) -> Object:
    """The node ran out of something and its kubelet ended the pod."""
    pod = exited(disrupted(pod, "TerminationByKubelet", message), 137, "")
    return _with_status(pod, reason="Evicted", message=message)


def disrupted(pod: Object, reason: str, message: str) -> Object:
    """Mark what is about to end the pod: PreemptionByScheduler, EvictionByEvictionAPI,
    DeletionByTaintManager, DeletionByPodGC, TerminationByKubelet.
    """
    others = [item for item in pod["status"].get("conditions", ()) if item["type"] != "DisruptionTarget"]
    return _with_status(pod, conditions=[*others, _condition("DisruptionTarget", "True", reason, message)])


def _with_status(pod: Object, **fields: Any) -> Object:
    return {**pod, "status": {**pod["status"], **fields}}


def _containers(pod: Object, state: dict[str, Any], ready: bool) -> list[dict[str, Any]]:
    started = "waiting" not in state
    return [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": f"{container['image']}@sha256:{'0' * 64}" if started else "",
            "ready": ready,
            "started": ready,
            "restartCount": 0,
            "state": state,
            "lastState": {},
            **({"containerID": "containerd://" + "0" * 64} if started else {}),
        }
        for container in pod["spec"]["containers"]
    ]


def _condition(kind: str, status: str, reason: str = "", message: str = "") -> dict[str, Any]:
    condition: dict[str, Any] = {"type": kind, "status": status, "lastProbeTime": None}
    condition["lastTransitionTime"] = now()
    if reason:
        condition["reason"] = reason
    if message:
        condition["message"] = message
    return condition
