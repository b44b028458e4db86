"""Events have one store and two APIs: core v1 and events.k8s.io/v1 name the same fields differently."""

from typing import Any, Final

_NEW_NAMES: Final = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_OLD_NAMES: Final = {new: old for old, new in _NEW_NAMES.items()}


def to_new_api(event: dict[str, Any]) -> dict[str, Any]:
    """Return a core v1 event as events.k8s.io/v1 shows it."""
    renamed = {_NEW_NAMES.get(name, name): value for name, value in event.items()}
    return renamed | {"apiVersion": "events.k8s.io/v1"}


def to_core_api(event: dict[str, Any]) -> dict[str, Any]:
    """Return an events.k8s.io/v1 event as the store keeps it."""
    return {_OLD_NAMES.get(name, name): value for name, value in event.items()} | {"apiVersion": "v1"}
