"""What the API server adds to the Jobs, pods and Events that it takes."""

from typing import Any, Final

_MODE: Final = 0o644
_VOLUMES_WITH_MODE: Final = ("configMap", "downwardAPI", "projected", "secret")


def complete_job(job: dict[str, Any]) -> None:
    """Write the identity into a new Job that has its metadata.uid; it has no status yet."""
    spec = job.setdefault("spec", {})
    template = spec.setdefault("template", {})
    uid, name = job["metadata"]["uid"], job["metadata"].get("name", "")
    if not spec.get("manualSelector"):
        owner = {"batch.kubernetes.io/controller-uid": uid}
        names = {"batch.kubernetes.io/job-name": name, "controller-uid": uid, "job-name": name}
        metadata = template.setdefault("metadata", {})
        metadata["labels"] = {**metadata.get("labels", {}), **owner, **names}
        spec.setdefault("selector", {"matchLabels": owner})
    job["status"] = {}


def add_job_defaults(spec: dict[str, Any]) -> None:
    defaults = {
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": 6,
        "completionMode": "NonIndexed",
        "suspend": False,
        "manualSelector": False,
        "podReplacementPolicy": "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed",
    }
    for field, value in defaults.items():
        spec.setdefault(field, value)
    for rule in spec.get("podFailurePolicy", {}).get("rules", ()):
        for pattern in rule.get("onPodConditions", ()):
            pattern.setdefault("status", "True")
    add_pod_defaults(spec.setdefault("template", {}).setdefault("spec", {}))


def add_pod_defaults(pod: dict[str, Any]) -> None:
    pod.setdefault("restartPolicy", "Always")
    pod.setdefault("dnsPolicy", "ClusterFirst")
    pod.setdefault("schedulerName", "default-scheduler")
    pod.setdefault("terminationGracePeriodSeconds", 30)
    pod.setdefault("securityContext", {})
    if pod.get("serviceAccountName"):
        pod["serviceAccount"] = pod["serviceAccountName"]  # its old name
    for volume in pod.get("volumes", ()):
        if set(volume) <= {"name"}:
            volume["emptyDir"] = {}
        for kind in _VOLUMES_WITH_MODE:
            if kind in volume:
                volume[kind].setdefault("defaultMode", _MODE)
        for item in volume.get("downwardAPI", {}).get("items", ()):
            item.get("fieldRef", {}).setdefault("apiVersion", "v1")
    for container in [*pod.get("containers", ()), *pod.get("initContainers", ())]:
        _add_container_defaults(container)


def _add_container_defaults(container: dict[str, Any]) -> None:
    image = container.get("image", "")
    name, _, digest = image.partition("@")
    latest = not digest and (":" not in name.rpartition("/")[2] or name.endswith(":latest"))
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    container.setdefault("resources", {})
    for variable in container.get("env", ()):
        if variable.get("value") == "":
            del variable["value"]
        reference = variable.get("valueFrom", {}).get("fieldRef")
        if reference is not None:
            reference.setdefault("apiVersion", "v1")


def add_requests(pod: dict[str, Any]) -> None:
    """What a pod limits, it requests; a pod template is left as it is."""
    for container in [*pod.get("containers", ()), *pod.get("initContainers", ())]:
        limits = container["resources"].get("limits")
        if limits:
            container["resources"]["requests"] = {**limits, **container["resources"].get("requests", {})}


def add_probe_times(status: dict[str, Any]) -> None:
    """The one field of a pod's conditions that is there even when it is null."""
    for condition in status.get("conditions", ()):
        condition.setdefault("lastProbeTime", None)


def add_event_defaults(event: dict[str, Any]) -> None:
    event.setdefault("eventTime", None)
    event.setdefault("reportingComponent", "")
    event.setdefault("reportingInstance", "")
