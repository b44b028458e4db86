"""The API server's memory: objects, one resource version for all, and the history that watches read.

Objects are never changed in place: every change stores a new dict, so readers need no lock. All methods
may be called from any thread.
"""

import json
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tests.parts import kube_status
from tests.parts.kube_schema import ResourceType

Object = dict[str, Any]
Key = tuple[str, str]
"""(namespace, name); the namespace is empty for what has none."""

ORPHAN: Final = "orphan"
FOREGROUND: Final = "foregroundDeletion"
_COLLECTED: Final = {"Foreground": FOREGROUND, "Orphan": ORPHAN}
JOB_TRACKING: Final = "batch.kubernetes.io/job-tracking"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Stored:
    """One version of an object, encoded once for all who read it."""

    __slots__ = ("_encoded", "created", "value", "version")

    def __init__(self, value: Object, version: int, created: int) -> None:
        self.value = value
        self.version = version
        self.created = created
        """The version at the object's creation."""
        self._encoded: bytes | None = None

    @property
    def encoded(self) -> bytes:
        if self._encoded is None:
            self._encoded = json.dumps(self.value, separators=(",", ":")).encode()
        return self._encoded


class Change(NamedTuple):
    """One entry of the history; before is None for a creation, after holds the last state of a deletion."""

    version: int
    type: str
    before: Object | None
    after: Stored


class Store:
    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        """Notified at every change; also the lock of everything here."""
        self.version = 1000
        self.compacted = self.version
        """Versions up to this one can no longer be watched from."""
        self._objects: dict[str, dict[Key, Stored]] = {}
        self._history: dict[str, list[Change]] = {}
        self._places: dict[str, tuple[str, Key]] = {}
        """uid to (plural, key)."""
        self._dependents: dict[str, set[tuple[str, Key]]] = {}
        """Owner's uid to what it owns."""
        self._types: dict[str, ResourceType] = {}

    # Reading

    def all(self, plural: str, namespace: str = "") -> list[Stored]:
        """Return the objects of one namespace, or of all, in the order of their keys."""
        with self.changed:
            found = self._objects.get(plural, {})
            keys = sorted(key for key in found if not namespace or key[0] == namespace)
            return [found[key] for key in keys]

    def get(self, plural: str, key: Key) -> Stored | None:
        with self.changed:
            return self._objects.get(plural, {}).get(key)

    def count(self, plural: str, namespace: str) -> int:
        with self.changed:
            return sum(1 for key in self._objects.get(plural, {}) if key[0] == namespace)

    def dependents(self, plural: str, owner_uid: str) -> list[Stored]:
        """Return what an owner has of one kind, the oldest first."""
        with self.changed:
            objects = self._objects.get(plural, {})
            owned = [objects[key] for kind, key in self._dependents.get(owner_uid, ()) if kind == plural]
            return sorted(owned, key=lambda stored: stored.created)

    def changes_after(self, plural: str, version: int) -> list[Change]:
        with self.changed:
            history = self._history.get(plural, [])
            return history[bisect_right(history, version, key=lambda change: change.version) :]

    # Changing

    def create(self, resource: ResourceType, key: Key, value: Object) -> Stored:
        """Store a new object, giving it creationTimestamp and, where it has none, a uid.

        Raises:
            ApiError: 409 AlreadyExists.
        """
        with self.changed:
            existing = self.get(resource.plural, key)
            if existing is not None:
                being_deleted = "deletionTimestamp" in existing.value["metadata"]
                raise kube_status.already_exists(resource.qualified, key[1], being_deleted)
            metadata = value["metadata"]
            metadata.setdefault("uid", str(uuid.uuid4()))
            metadata["creationTimestamp"] = now()
            if resource.has_generation:
                metadata["generation"] = 1
            return self._commit(resource, key, "ADDED", None, value)

    def replace(self, resource: ResourceType, key: Key, change: Callable[[Object], Object]) -> Stored:
        """Store what change makes of the present object; no new version when nothing differs.

        An object that is being deleted goes when its last finalizer does.

        Raises:
            ApiError: 404, or what change raises.
        """
        with self.changed:
            stored = self._present(resource, key)
            old, new = stored.value, change(stored.value)
            if new == old:
                return stored
            if resource.has_generation and _wanted(new) != _wanted(old):
                new = with_metadata(new, generation=old["metadata"]["generation"] + 1)
            metadata = new["metadata"]
            # A pod in its grace period stays until the kubelet deletes it with a period of 0.
            graceful = bool(old["metadata"].get("deletionGracePeriodSeconds"))
            if "deletionTimestamp" in metadata and not metadata.get("finalizers") and not graceful:
                return self._remove(resource, key, new)
            return self._commit(resource, key, "MODIFIED", old, new)

    def delete(
        self, resource: ResourceType, key: Key, propagation: str, grace_seconds: int | None = None
    ) -> Stored:
        """Delete as the API server does: at once, or by a deletionTimestamp where finalizers or a pod's
        grace period hold the object. Deleting twice changes nothing, but shortens a pod's grace period.
        """
        with self.changed:
            stored = self._present(resource, key)
            old = stored.value
            finalizers = list(old["metadata"].get("finalizers", ()))
            grace = 0
            if resource.plural == "pods" and _runs(old):
                default = old["spec"].get("terminationGracePeriodSeconds", 30)
                grace = default if grace_seconds is None else grace_seconds
            # The garbage collector sees to the dependents, and then takes these off again.
            if propagation in _COLLECTED:
                finalizers.append(_COLLECTED[propagation])
            if not finalizers and grace == 0:
                return self._remove(resource, key, _deleted(old, 0) if resource.plural == "pods" else old)
            deleted = "deletionTimestamp" in old["metadata"]
            if deleted and grace >= old["metadata"].get("deletionGracePeriodSeconds", 0):
                return stored
            new = with_metadata(_deleted(old, grace), finalizers=list(dict.fromkeys(finalizers)))
            stored = self._commit(resource, key, "MODIFIED", old, new)
            self._collect(old["metadata"]["uid"], propagation)
            return stored

    def compact(self) -> None:
        """Watches and pages from an earlier version get 410 from now on; open watches miss nothing."""
        with self.changed:
            self.compacted = self.version

    def _present(self, resource: ResourceType, key: Key) -> Stored:
        stored = self.get(resource.plural, key)
        if stored is None:
            raise kube_status.not_found(resource.qualified, key[1])
        return stored

    def _commit(
        self, resource: ResourceType, key: Key, kind: str, before: Object | None, after: Object
    ) -> Stored:
        self.version += 1
        objects = self._objects.setdefault(resource.plural, {})
        created = objects[key].created if before is not None else self.version
        stored = Stored(with_metadata(after, resourceVersion=str(self.version)), self.version, created)
        owners = {owner["uid"] for owner in stored.value["metadata"].get("ownerReferences", ())}
        previous = (
            {owner["uid"] for owner in before["metadata"].get("ownerReferences", ())} if before else set()
        )
        for uid in previous - owners if kind != "DELETED" else owners:
            self._dependents.get(uid, set()).discard((resource.plural, key))
        if kind == "DELETED":
            del objects[key]
            del self._places[stored.value["metadata"]["uid"]]
        else:
            objects[key] = stored
            self._places[stored.value["metadata"]["uid"]] = (resource.plural, key)
            self._types[resource.plural] = resource
            for uid in owners:
                self._dependents.setdefault(uid, set()).add((resource.plural, key))
        self._history.setdefault(resource.plural, []).append(Change(self.version, kind, before, stored))
        self.changed.notify_all()
        return stored

    def _remove(self, resource: ResourceType, key: Key, last: Object) -> Stored:
        removed = self._commit(resource, key, "DELETED", last, last)
        self._delete_dependents(last["metadata"]["uid"], owner_is_gone=True)
        for owner in last["metadata"].get("ownerReferences", ()):
            self._let_go(owner["uid"], FOREGROUND)
        return removed

    # The garbage collector

    def _collect(self, owner_uid: str, propagation: str) -> None:
        if propagation == "Foreground":
            self._delete_dependents(owner_uid, owner_is_gone=False)
        if propagation == "Orphan":
            self._orphan(owner_uid)
        if propagation in _COLLECTED:
            self._let_go(owner_uid, _COLLECTED[propagation])

    def _delete_dependents(self, owner_uid: str, owner_is_gone: bool) -> None:
        """Delete what belongs to an owner that is gone, or that waits for it (foreground)."""
        for plural, key in list(self._dependents.get(owner_uid, ())):
            stored = self.get(plural, key)
            if stored is None:
                continue
            resource = self._types[plural]
            if owner_is_gone and JOB_TRACKING in stored.value["metadata"].get("finalizers", ()):
                # The Job controller lets go of the pods of a Job that is gone.
                stored = self.replace(
                    resource,
                    key,
                    lambda value: with_metadata(
                        value,
                        finalizers=[name for name in value["metadata"]["finalizers"] if name != JOB_TRACKING],
                    ),
                )
            if self.get(plural, key) is not None:
                self.delete(resource, key, "Background")

    def _let_go(self, owner_uid: str, finalizer: str) -> None:
        """Take the collector's finalizer off an owner that waited for its dependents, once it has none."""
        place = self._places.get(owner_uid)
        if place is None or self._dependents.get(owner_uid):
            return
        plural, key = place
        finalizers = self._objects[plural][key].value["metadata"].get("finalizers", ())
        if finalizer in finalizers:
            rest = [name for name in finalizers if name != finalizer]
            self.replace(self._types[plural], key, lambda value: with_metadata(value, finalizers=rest))

    def _orphan(self, owner_uid: str) -> None:
        for plural, key in list(self._dependents.get(owner_uid, ())):
            self.replace(
                self._types[plural],
                key,
                lambda value: with_metadata(
                    value,
                    ownerReferences=[
                        owner for owner in value["metadata"]["ownerReferences"] if owner["uid"] != owner_uid
                    ],
                ),
            )


def with_metadata(value: Object, **fields: Any) -> Object:
    """Return an object with some metadata changed; what is empty is left out, as in Kubernetes' JSON."""
    metadata = {**value["metadata"], **fields}
    return {**value, "metadata": {name: item for name, item in metadata.items() if item not in ([], {})}}


def _deleted(value: Object, grace_seconds: int) -> Object:
    metadata = value["metadata"]
    fields = {"deletionTimestamp": metadata.get("deletionTimestamp", now())}
    if "generation" in metadata and "deletionTimestamp" not in metadata:
        fields["generation"] = metadata["generation"] + 1
    return with_metadata(value, **fields, deletionGracePeriodSeconds=grace_seconds)


def _wanted(value: Object) -> Object:
    """What a generation counts the changes of: the node that a pod was given is none."""
    return {name: item for name, item in value.get("spec", {}).items() if name != "nodeName"}


def _runs(pod: Object) -> bool:
    """Say whether a kubelet has the pod, so that a deletion waits for its containers to end."""
    on_node = bool(pod.get("spec", {}).get("nodeName"))
    return on_node and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
