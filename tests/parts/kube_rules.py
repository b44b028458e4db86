"""What the API server adds to objects (defaults) and refuses (validation): metadata, Jobs and pod templates.

The rules are those of Kubernetes 1.36 that a Job of this project can meet; schema faults are found before,
in kube_schema.py.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from tests.parts.kube_schema import ResourceType
from tests.parts.kube_status import Cause

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_KEY_NAME: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_ANNOTATIONS_BYTES: Final = 262144
_IMMUTABLE: Final = (
    "completionMode",
    "selector",
    "podFailurePolicy",
    "successPolicy",
    "backoffLimitPerIndex",
    "managedBy",
)
_FREE_WHILE_SUSPENDED: Final = ("nodeSelector", "tolerations", "affinity", "schedulingGates")

_MUST_BE_NAME: Final = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must"
    " start and end with an alphanumeric character"
)
_MUST_BE_VALUE: Final = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must"
    " start and end with an alphanumeric character"
)


def complete_job(job: dict[str, Any]) -> None:
    """Write the identity into a new Job that has its metadata.name and metadata.uid; it has no status yet."""
    spec, template = job["spec"], job["spec"].setdefault("template", {})
    uid, name = job["metadata"]["uid"], job["metadata"]["name"]
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
    add_pod_defaults(spec["template"].get("spec", {}))


def add_pod_defaults(pod: dict[str, Any]) -> None:
    pod.setdefault("restartPolicy", "Always")
    pod.setdefault("dnsPolicy", "ClusterFirst")
    pod.setdefault("schedulerName", "default-scheduler")
    pod.setdefault("terminationGracePeriodSeconds", 30)
    pod.setdefault("securityContext", {})
    for container in [*pod.get("containers", ()), *pod.get("initContainers", ())]:
        latest = ":" not in container.get("image", "").rpartition("/")[2] or container["image"].endswith(
            ":latest"
        )
        container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
        container.setdefault("terminationMessagePath", "/dev/termination-log")
        container.setdefault("terminationMessagePolicy", "File")
        container.setdefault("resources", {})
        limits = container["resources"].get("limits")
        if limits:
            container["resources"]["requests"] = {**limits, **container["resources"].get("requests", {})}


def metadata_faults(resource: ResourceType, metadata: dict[str, Any]) -> Iterator[Cause]:
    name = metadata.get("name", "")
    if not name:
        yield Cause("FieldValueRequired", "metadata.name", "Required value: name or generateName is required")
    elif len(name) > 253 or not _NAME.fullmatch(name):
        yield Cause("FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {_MUST_BE_NAME}')
    yield from _label_faults(metadata.get("labels", {}), "metadata.labels")
    yield from _annotation_faults(metadata.get("annotations", {}), "metadata.annotations")
    for finalizer in metadata.get("finalizers", ()):
        if not _is_key(finalizer):
            yield Cause("FieldValueInvalid", "metadata.finalizers", f'Invalid value: "{finalizer}"')
        elif "/" not in finalizer and finalizer not in ("orphan", "foregroundDeletion", "kubernetes"):
            yield Cause(
                "FieldValueInvalid",
                "metadata.finalizers",
                f'Invalid value: "{finalizer}": name is neither a standard finalizer name nor is it fully'
                " qualified",
            )


def _is_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    good_prefix = not slash or (len(prefix) <= 253 and _NAME.fullmatch(prefix) is not None)
    return good_prefix and len(name) <= 63 and _KEY_NAME.fullmatch(name) is not None


def _label_faults(labels: dict[str, str], path: str) -> Iterator[Cause]:
    for key, value in labels.items():
        if not _is_key(key):
            yield Cause("FieldValueInvalid", path, f'Invalid value: "{key}": name part must be a valid key')
        if len(value) > 63:
            yield Cause(
                "FieldValueInvalid", path, f'Invalid value: "{value}": must be no more than 63 characters'
            )
        elif not _LABEL_VALUE.fullmatch(value):
            yield Cause("FieldValueInvalid", path, f'Invalid value: "{value}": {_MUST_BE_VALUE}')


def _annotation_faults(annotations: dict[str, str], path: str) -> Iterator[Cause]:
    for key in annotations:
        if not _is_key(key.lower()):
            yield Cause("FieldValueInvalid", path, f'Invalid value: "{key}": name part must be a valid key')
    if (
        sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
        > _ANNOTATIONS_BYTES
    ):
        yield Cause("FieldValueTooLong", path, f"Too long: may not be more than {_ANNOTATIONS_BYTES} bytes")


def job_faults(job: dict[str, Any]) -> Iterator[Cause]:
    """What is wrong with a Job that has its defaults."""
    spec = job["spec"]
    for field in (
        "parallelism",
        "completions",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ):
        value = spec.get(field)
        if value is not None and value < 0:
            yield Cause(
                "FieldValueInvalid",
                f"spec.{field}",
                f"Invalid value: {value}: must be greater than or equal to 0",
            )
    template = spec["template"]
    metadata = template.get("metadata", {})
    yield from _label_faults(metadata.get("labels", {}), "spec.template.labels")
    yield from _annotation_faults(metadata.get("annotations", {}), "spec.template.annotations")
    pod = template.get("spec", {})
    if pod.get("restartPolicy") not in ("OnFailure", "Never"):
        yield Cause(
            "FieldValueRequired",
            "spec.template.spec.restartPolicy",
            'Required value: valid values: "OnFailure", "Never"',
        )
    yield from _pod_faults(pod, "spec.template.spec")
    if "podFailurePolicy" in spec:
        yield from _failure_policy_faults(spec["podFailurePolicy"], pod)


def _pod_faults(pod: dict[str, Any], path: str) -> Iterator[Cause]:
    volumes = [volume.get("name", "") for volume in pod.get("volumes", ())]
    for index, name in enumerate(volumes):
        if len(name) > 63 or not _LABEL_NAME.fullmatch(name):
            yield Cause("FieldValueInvalid", f"{path}.volumes[{index}].name", f'Invalid value: "{name}"')
        if name in volumes[:index]:
            yield Cause("FieldValueDuplicate", f"{path}.volumes[{index}].name", f'Duplicate value: "{name}"')
    if not pod.get("containers"):
        yield Cause("FieldValueRequired", f"{path}.containers", "Required value")
    names: set[str] = set()
    for kind in ("containers", "initContainers"):
        for index, container in enumerate(pod.get(kind, ())):
            where, name = f"{path}.{kind}[{index}]", container.get("name", "")
            if len(name) > 63 or not _LABEL_NAME.fullmatch(name):
                yield Cause("FieldValueInvalid", f"{where}.name", f'Invalid value: "{name}"')
            if name in names:
                yield Cause("FieldValueDuplicate", f"{where}.name", f'Duplicate value: "{name}"')
            names.add(name)
            yield from _container_faults(container, volumes, where)


def _container_faults(container: dict[str, Any], volumes: list[str], path: str) -> Iterator[Cause]:
    if not container.get("image"):
        yield Cause("FieldValueRequired", f"{path}.image", "Required value")
    mounted: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts", ())):
        if mount["name"] not in volumes:
            yield Cause(
                "FieldValueNotFound", f"{path}.volumeMounts[{index}].name", f'Not found: "{mount["name"]}"'
            )
        if mount["mountPath"] in mounted:
            yield Cause(
                "FieldValueInvalid",
                f"{path}.volumeMounts[{index}].mountPath",
                f'Invalid value: "{mount["mountPath"]}": must be unique',
            )
        mounted.add(mount["mountPath"])
    limits = container["resources"].get("limits", {})
    for name, amount in container["resources"].get("requests", {}).items():
        if "/" in name and str(amount) != str(limits.get(name)):
            yield Cause(
                "FieldValueInvalid",
                f"{path}.resources.requests",
                f'Invalid value: "{amount}": must be equal to {name} limit of {limits.get(name, 0)}',
            )


def _failure_policy_faults(policy: dict[str, Any], pod: dict[str, Any]) -> Iterator[Cause]:
    if pod.get("restartPolicy") != "Never":
        yield Cause(
            "FieldValueInvalid",
            "spec.template.spec.restartPolicy",
            f'Invalid value: "{pod.get("restartPolicy")}": only "Never" is supported when podFailurePolicy is'
            " specified",
        )
    names = {item.get("name") for kind in ("containers", "initContainers") for item in pod.get(kind, ())}
    if len(policy["rules"]) > 20:
        yield Cause(
            "FieldValueTooMany", "spec.podFailurePolicy.rules", "Too many: must have at most 20 items"
        )
    for index, rule in enumerate(policy["rules"]):
        where = f"spec.podFailurePolicy.rules[{index}]"
        codes = rule.get("onExitCodes")
        if ("onExitCodes" in rule) == bool(rule.get("onPodConditions")):
            yield Cause(
                "FieldValueInvalid",
                where,
                "Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            )
        if codes is None:
            continue
        values = codes["values"]
        if not values or values != sorted(set(values)) or (0 in values and codes["operator"] == "In"):
            yield Cause(
                "FieldValueInvalid",
                f"{where}.onExitCodes.values",
                f"Invalid value: {values}: must be ordered, unique, and without 0 for the In operator",
            )
        if codes.get("containerName") and codes["containerName"] not in names:
            yield Cause(
                "FieldValueInvalid",
                f"{where}.onExitCodes.containerName",
                f'Invalid value: "{codes["containerName"]}": must be one of the container or initContainer'
                " names in the pod template",
            )


def job_update_faults(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Cause]:
    """The fields of a Job that nobody may change."""
    immutable = {field: (old["spec"].get(field), new["spec"].get(field)) for field in _IMMUTABLE}
    if old["spec"].get("completionMode") != "Indexed":
        immutable["completions"] = (old["spec"].get("completions"), new["spec"].get("completions"))
    free = old["spec"].get("suspend") and not old["status"].get("startTime")
    immutable["template"] = (_fixed(old, bool(free)), _fixed(new, bool(free)))
    for field, (before, after) in immutable.items():
        if before != after:
            yield Cause("FieldValueInvalid", f"spec.{field}", "Invalid value: field is immutable")


def _fixed(job: dict[str, Any], free: bool) -> dict[str, Any]:
    """The part of the pod template that is fixed; scheduling is free while a Job never ran."""
    template: dict[str, Any] = job["spec"]["template"]
    if not free:
        return template
    spec = template["spec"].items()
    return {
        "spec": {
            name: value
            for name, value in spec
            if name not in _FREE_WHILE_SUSPENDED and name not in ("containers", "initContainers")
        },
        "containers": [
            {name: value for name, value in container.items() if name != "resources"}
            for container in template["spec"]["containers"]
        ],
    }
