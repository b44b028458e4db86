"""What the API server refuses: metadata, Jobs, pod templates, Leases, Events.

The rules are those of Kubernetes 1.36 that a Job of this project can meet; schema faults are found before,
in kube_schema.py.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from tests.parts.kube_pod_rules import pod_faults
from tests.parts.kube_schema import ResourceType
from tests.parts.kube_status import Cause, not_supported

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE: Final = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_KEY_NAME: Final = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_UID_LABEL: Final = "batch.kubernetes.io/controller-uid"
_POD: Final = "spec.template.spec"
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


def metadata_faults(resource: ResourceType, metadata: dict[str, Any]) -> Iterator[Cause]:
    name = metadata.get("name", "")
    if not name:
        yield Cause("FieldValueRequired", "metadata.name", "Required value: name or generateName is required")
    elif len(name) > 253 or not _NAME.fullmatch(name):
        yield Cause("FieldValueInvalid", "metadata.name", f'Invalid value: "{name}": {_MUST_BE_NAME}')
    yield from _label_faults(metadata.get("labels", {}), "metadata.labels")
    yield from _annotation_faults(metadata.get("annotations", {}), "metadata.annotations")
    for index, finalizer in enumerate(metadata.get("finalizers", ())):
        if not _is_key(finalizer):
            yield Cause("FieldValueInvalid", "metadata.finalizers", f'Invalid value: "{finalizer}"')
        elif "/" not in finalizer and finalizer not in ("orphan", "foregroundDeletion", "kubernetes"):
            yield Cause(
                "FieldValueInvalid",
                f"metadata.finalizers[{index}]",
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
    yield from not_supported("spec.completionMode", spec["completionMode"], ("Indexed", "NonIndexed"))
    template = spec["template"]
    metadata = template.get("metadata", {})
    labels = metadata.get("labels", {})
    if not spec["manualSelector"] and spec["selector"] != {"matchLabels": {_UID_LABEL: labels[_UID_LABEL]}}:
        yield Cause("FieldValueInvalid", "spec.selector", "Invalid value: `selector` not auto-generated")
        yield Cause(
            "FieldValueInvalid",
            "spec.template.metadata.labels",
            f"Invalid value: {labels}: `selector` does not match template `labels`",
        )
    yield from _label_faults(metadata.get("labels", {}), "spec.template.labels")
    yield from _annotation_faults(metadata.get("annotations", {}), "spec.template.annotations")
    pod = template.get("spec", {})
    policy = pod.get("restartPolicy", "")
    yield from not_supported(f"{_POD}.restartPolicy", policy, ("Always", "OnFailure", "Never"))
    if policy == "Always":
        yield Cause(
            "FieldValueRequired",
            f"{_POD}.restartPolicy",
            'Required value: valid values: "OnFailure", "Never"',
        )
    yield from pod_faults(pod, _POD)
    if "podFailurePolicy" in spec:
        yield from _failure_policy_faults(spec["podFailurePolicy"], pod)


def _failure_policy_faults(policy: dict[str, Any], pod: dict[str, Any]) -> Iterator[Cause]:
    if pod.get("restartPolicy") == "OnFailure":
        yield Cause(
            "FieldValueInvalid",
            f"{_POD}.restartPolicy",
            'Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified',
        )
    names = {item.get("name") for kind in ("containers", "initContainers") for item in pod.get(kind, ())}
    if len(policy["rules"]) > 20:
        yield Cause(
            "FieldValueTooMany", "spec.podFailurePolicy.rules", "Too many: must have at most 20 items"
        )
    for index, rule in enumerate(policy["rules"]):
        where = f"spec.podFailurePolicy.rules[{index}]"
        codes = rule.get("onExitCodes")
        actions = ("Count", "FailIndex", "FailJob", "Ignore")
        if rule.get("action"):
            yield from not_supported(f"{where}.action", rule["action"], actions)
        for number, pattern in enumerate(rule.get("onPodConditions", ())):
            status = f"{where}.onPodConditions[{number}].status"
            yield from not_supported(status, pattern["status"], ("False", "True", "Unknown"))
        if ("onExitCodes" in rule) == bool(rule.get("onPodConditions")):
            yield Cause(
                "FieldValueInvalid",
                where,
                "Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
            )
        if codes is None:
            continue
        yield from _exit_code_faults(codes, f"{where}.onExitCodes")
        if codes.get("containerName") and codes["containerName"] not in names:
            yield Cause(
                "FieldValueInvalid",
                f"{where}.onExitCodes.containerName",
                f'Invalid value: "{codes["containerName"]}": must be one of the container or initContainer'
                " names in the pod template",
            )


def _exit_code_faults(codes: dict[str, Any], path: str) -> Iterator[Cause]:
    operator, values = codes.get("operator", ""), codes.get("values", [])
    if operator:
        yield from not_supported(f"{path}.operator", operator, ("In", "NotIn"))
    for index, value in enumerate(values):
        where = f"{path}.values[{index}]"
        if value == 0 and operator == "In":
            yield Cause("FieldValueInvalid", where, "Invalid value: 0: must not be 0 for the In operator")
        if value in values[:index]:
            yield Cause("FieldValueDuplicate", where, f"Duplicate value: {value}")
    if not values:
        yield Cause(
            "FieldValueInvalid", f"{path}.values", "Invalid value: []: at least one value is required"
        )
    elif values != sorted(values):
        yield Cause("FieldValueInvalid", f"{path}.values", f"Invalid value: {values}: must be ordered")


def lease_faults(lease: dict[str, Any]) -> Iterator[Cause]:
    seconds = lease.get("spec", {}).get("leaseDurationSeconds")
    if seconds is not None and seconds <= 0:
        yield Cause(
            "FieldValueInvalid",
            "spec.leaseDurationSeconds",
            f"Invalid value: {seconds}: must be greater than 0",
        )


def event_faults(event: dict[str, Any]) -> Iterator[Cause]:
    namespace = event["metadata"]["namespace"]
    involved = event.get("involvedObject", {}).get("namespace", "")
    if involved != namespace:
        yield Cause(
            "FieldValueInvalid",
            "involvedObject.namespace",
            f'Invalid value: "{involved}": does not match event.namespace',
        )


def job_update_faults(old: dict[str, Any], new: dict[str, Any]) -> Iterator[Cause]:
    """The fields of a Job that nobody may change."""
    immutable = {field: (old["spec"].get(field), new["spec"].get(field)) for field in _IMMUTABLE}
    if old["spec"].get("completionMode") != "Indexed":
        immutable["completions"] = (old["spec"].get("completions"), new["spec"].get("completions"))
    free = old["spec"].get("suspend") and not old["status"].get("startTime")
    template = "template.spec" if free else "template"
    immutable[template] = (_fixed(old, bool(free)), _fixed(new, bool(free)))
    for field, (before, after) in immutable.items():
        if before != after:
            shown = json.dumps(after)
            yield Cause("FieldValueInvalid", f"spec.{field}", f"Invalid value: {shown}: field is immutable")


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
