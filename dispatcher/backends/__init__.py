"""Where Jobs run: a Kubernetes cluster, or child processes on this machine.

Intake, diagnosis and relay see only what is here; they do not know which it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

from dispatcher.job import Manifest


@dataclass(frozen=True)
class Snapshot:
    """A Job and its pods as the backend last saw them."""

    job: Manifest
    pods: tuple[Manifest, ...] = ()
    events: tuple[Manifest, ...] = ()
    """Those that were asked for, about one object."""


class Backend(Protocol):
    def create(self, job: Manifest) -> bool:
        """Create a Job; False when it is there already with the same request.

        Raises:
            JobConflictError: a Job of that name holds another request.
            JobRefusedError: it will never be accepted.
            BackendBusyError, BackendUnavailableError: not now.
        """

    def snapshot(self, name: str) -> Snapshot | None:
        """Return what is known of a Job, from memory."""

    def pods_now(self, name: str) -> tuple[Manifest, ...]:
        """Return the pods of a Job as they are now, not from memory.

        Raises:
            BackendUnavailableError: not now.
        """

    def jobs_now(self) -> Iterator[Manifest]:
        """Yield all Jobs as they are now, not from memory.

        Raises:
            BackendUnavailableError: not now.
        """

    def events(self, about: str) -> tuple[Manifest, ...]:
        """Return the Events about the object of that uid; none where they cannot be read."""

    def names(self) -> list[str]:
        """Return the names of all Jobs that are known."""

    def patch(self, name: str, change: dict[str, Any], resource_version: str | None = None) -> None:
        """Apply a JSON merge patch to a Job; one that is gone meanwhile is no error.

        Raises:
            StaleJobError: resource_version is given and is not the Job's any more.
            BackendUnavailableError: not now.
        """

    def stop_pods(self, name: str) -> None:
        """Ask the pods of a Job to end, as a deletion of the pods does."""

    def log_tail(self, pod: str, lines: int) -> str:
        """Return the last lines of a pod's log; empty when there is none."""

    def holds(self, model_path: str) -> bool:
        """Whether the weights are where the trainer says, as far as this process can see."""

    def record_event(self, job: Manifest, reason: str, message: str, *, warning: bool = False) -> None:
        """Leave a line that `kubectl describe job` shows."""

    def load(self) -> None:
        """Read everything once, for a command that does not run on."""

    def run(self, changed: Callable[[str], None], stop: Event) -> None:
        """Keep the snapshots fresh and report the name of every Job that changed, until stop is set."""

    def synced(self) -> bool:
        """Whether the first snapshots are complete."""

    def silent_for(self) -> float:
        """Return the seconds since the snapshots were last known to be fresh."""
