"""What the API server refuses of a pod's spec, which is also a Job's template."""

import re
from collections.abc import Iterator
from typing import Any, Final

from kubernetes.utils.quantity import parse_quantity

from tests.parts.kube_status import Cause, not_supported

_LABEL_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def pod_faults(pod: dict[str, Any], path: str) -> Iterator[Cause]:
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
            if name and (len(name) > 63 or not _LABEL_NAME.fullmatch(name)):
                yield Cause("FieldValueInvalid", f"{where}.name", f'Invalid value: "{name}"')
            if name in names:
                yield Cause("FieldValueDuplicate", f"{where}.name", f'Duplicate value: "{name}"')
            names.add(name)
            yield from _container_faults(container, volumes, where)


def _container_faults(container: dict[str, Any], volumes: list[str], path: str) -> Iterator[Cause]:
    if not container.get("image"):
        yield Cause("FieldValueRequired", f"{path}.image", "Required value")
    pull = container["imagePullPolicy"]
    yield from not_supported(f"{path}.imagePullPolicy", pull, ("Always", "IfNotPresent", "Never"))
    mounted: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts", ())):
        name, place = mount.get("name", ""), mount.get("mountPath", "")
        where = f"{path}.volumeMounts[{index}]"
        if name not in volumes:
            yield Cause("FieldValueNotFound", f"{where}.name", f'Not found: "{name}"')
        if place in mounted:
            yield Cause(
                "FieldValueInvalid", f"{where}.mountPath", f'Invalid value: "{place}": must be unique'
            )
        mounted.add(place)
    yield from _resource_faults(container["resources"], f"{path}.resources")


def _resource_faults(resources: dict[str, Any], path: str) -> Iterator[Cause]:
    """What is named domain/name (a GPU) comes whole, and is requested as it is limited."""
    limits = resources.get("limits", {})
    for name, amount in limits.items():
        if "/" in name and parse_quantity(amount) % 1:
            field = f"{path}.limits[{name}]"
            yield Cause("FieldValueInvalid", field, f'Invalid value: "{amount}": must be an integer')
    for name, amount in resources.get("requests", {}).items():
        limit = limits.get(name)
        if "/" in name and limit is None:
            yield Cause(
                "FieldValueRequired",
                f"{path}.limits",
                f"Required value: Limit must be set for non overcommitable resources: {name}",
            )
        elif "/" in name and amount != limit:
            yield Cause(
                "FieldValueInvalid",
                f"{path}.requests",
                f'Invalid value: "{amount}": must be equal to {name} limit of {limit}',
            )
        elif limit is not None and parse_quantity(amount) > parse_quantity(limit):
            yield Cause(
                "FieldValueInvalid",
                f"{path}.requests",
                f'Invalid value: "{amount}": must be less than or equal to {name} limit of {limit}',
            )
