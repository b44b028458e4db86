"""The state folder of the local backend: what is known of each Job, so that a restart goes on from there."""

import copy
import fcntl
import json
import shutil
import uuid
from datetime import UTC, datetime
from pathlib import Path

from dispatcher.backends.local_pod import LocalPod, write_json
from dispatcher.errors import DispatcherError
from dispatcher.job import Manifest


class LocalStore:
    """`jobs/NAME/job.json` and `jobs/NAME/pods/`; a Job counts from when its job.json is there.

    The methods raise OSError where the disk does.

    Raises:
        DispatcherError: the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jobs = folder.resolve() / "jobs"
        try:
            self._jobs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DispatcherError(
                f"LOCAL_STATE_DIR={folder} cannot be used ({error.strerror}); set it to a folder of yours"
            ) from error

    def own(self) -> None:
        """Keep other dispatchers away until `disown`, or until this process ends.

        Raises:
            DispatcherError: another one is there.
        """
        self._lock = (self._folder / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.disown()
            raise DispatcherError(
                f"another dispatcher runs with LOCAL_STATE_DIR={self._folder}; "
                "stop it, or name another folder"
            ) from error

    def disown(self) -> None:
        self._lock.close()

    def read(self) -> dict[str, tuple[Manifest, list[LocalPod]]]:
        """Return each Job and its attempts, the first one first."""
        found = {}
        for folder in sorted(self._jobs.iterdir()):
            try:
                job = json.loads((folder / "job.json").read_text())
                attempts = sorted((folder / "pods").glob("*/pod.json"), key=lambda path: path.stat().st_ctime)
                found[folder.name] = (job, [LocalPod.load(path.parent) for path in attempts])
            except FileNotFoundError:
                continue  # its create was cut off, and its message comes again; or it is being removed
        return found

    def add(self, job: Manifest) -> Manifest:
        """Write a new Job; return it with what an API server would add."""
        stored = copy.deepcopy(job)
        stored["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "resourceVersion": "0",
            "creationTimestamp": datetime.now(UTC).isoformat(),
        }
        stored["status"] = {}
        folder = self._of(job["metadata"]["name"])
        if folder.exists():
            shutil.rmtree(folder)  # its create, or its removal, was cut off
        folder.mkdir()
        self.save(stored)
        return stored

    def save(self, job: Manifest) -> None:
        """Write a Job that was changed, under its next resourceVersion."""
        job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1)
        write_json(self._of(job["metadata"]["name"]) / "job.json", job)

    def new_pod(self, name: str, attempt: int) -> LocalPod:
        """Return a pod that has its folder, and is not started."""
        return LocalPod(self._of(name) / "pods" / f"{name}-{attempt}")

    def remove(self, name: str) -> None:
        (self._of(name) / "job.json").unlink(missing_ok=True)  # from here on it does not count
        shutil.rmtree(self._of(name))

    def _of(self, name: str) -> Path:
        return self._jobs / name
