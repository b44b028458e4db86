"""One attempt at a Job on this machine: the container's command as a child process.

The manifest is the one that Kubernetes would get. What a kubelet does with mounts is done here with
paths: wherever the command or the environment names a mount path, the folder behind it is put in.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dispatcher.backends.local_shim import CANNOT_START
from dispatcher.job import Manifest, trainer_container
from job_contract import names

NOT_FOR_TRAINERS: Final = ("AMQP_URL", "BACKEND_TOKEN", "WEBHOOK_SECRET")


class LocalPod:
    """A folder with all there is of an attempt: pod.json, log, termination-log, exit.json, lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pod: Manifest = {}
        self._shim: subprocess.Popen[bytes] | None = None

    @classmethod
    def load(cls, folder: Path) -> "LocalPod":
        """Read an attempt that an earlier process started."""
        pod = cls(folder)
        pod.pod = json.loads((folder / "pod.json").read_text())
        return pod

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def slots(self) -> list[str]:
        return list(self.pod["slots"])

    def start(
        self, job: Manifest, models_dir: Path, slots: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        """Start the container's command.

        Args:
            slots: the GPUs it gets, as CUDA_VISIBLE_DEVICES names them; `cpu` for none.
            environment: the dispatcher's own; the trainer's settings come from it.
        """
        if self.folder.exists():
            shutil.rmtree(self.folder)  # an attempt that was cut off before it counted
        self.folder.mkdir(parents=True)
        (self.folder / "log").touch()
        container = trainer_container(job)
        mounts = self._mount(job, container, models_dir)
        command = [
            _mounted(word, mounts) for word in (*container.get("command", ()), *container.get("args", ()))
        ]
        variables = self._environment(container, mounts, slots, environment)
        program = shutil.which(command[0], path=variables["PATH"]) if command else None
        now = datetime.now(UTC).isoformat()
        state: Manifest = {"running": {"startedAt": now}}
        if program is None:
            message = f"the command {command[0]} is not there" if command else "the template has no command"
            ended = {"exitCode": CANNOT_START, "reason": "StartError", "message": message, "finishedAt": now}
            state = {"terminated": ended}
        self.pod = {
            "metadata": {"name": self.folder.name, "uid": self.folder.name, "creationTimestamp": now},
            "slots": list(slots),
            "status": {
                "phase": "Running" if program else "Failed",
                "startTime": now,
                "conditions": [],
                "containerStatuses": [
                    {"name": names.CONTAINER_NAME, "image": container.get("image"), "state": state}
                ],
            },
        }
        self._save()
        if program:
            self._spawn([program, *command[1:]], variables)

    def wait(self) -> None:
        """Wait until the attempt has ended, whichever process started it."""
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
        if self._shim:
            self._shim.wait()  # lets go of its entry in the process table

    def take_down(self) -> None:
        """Write down how an attempt ended."""
        status = self.pod["status"]
        exit_file = self.folder / "exit.json"
        if exit_file.exists():
            ended = json.loads(exit_file.read_text())
        else:
            # Killed together with its shim, or the machine went down: as if a node had been lost.
            ended = {"exitCode": 137, "finishedAt": self._last_seen()}
            if not status["conditions"]:
                self._disrupted("the machine or the training's processes were stopped from outside")
        message = self._termination_message()
        container = status["containerStatuses"][0]
        container["state"] = {
            "terminated": {
                "reason": "Completed" if ended["exitCode"] == 0 else "Error",
                "startedAt": status["startTime"],
                **ended,
                **({"message": message} if message else {}),
            }
        }
        status["phase"] = "Succeeded" if ended["exitCode"] == 0 else "Failed"
        self._save()

    def interrupt(self, why: str) -> None:
        """Ask the attempt to end for a reason that is not its own, and that costs it no retry."""
        self._disrupted(why)
        self._save()
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group of an attempt that still holds its lock."""
        pid_file = self.folder / "pid"
        with (self.folder / "lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    if pid_file.exists():
                        with suppress(ProcessLookupError):  # it has ended this instant
                            os.killpg(int(pid_file.read_text()), number)
                        return
                    time.sleep(0.01)  # the shim has started and not yet written its pid
                else:
                    return

    def log_tail(self, lines: int) -> str:
        path = self.folder / "log"
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            return b"\n".join(file.read().splitlines()[-lines:]).decode(errors="replace")

    def _spawn(self, command: list[str], variables: dict[str, str]) -> None:
        shim = [sys.executable, "-m", "dispatcher.backends.local_shim", str(self.folder), *command]
        with (self.folder / "lock").open("a") as lock, (self.folder / "log").open("ab") as log:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._shim = subprocess.Popen(
                shim,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )

    def _mount(self, job: Manifest, container: Manifest, models_dir: Path) -> dict[str, Path]:
        """Make the volumes and return the folder behind each mount path."""
        spec, metadata = job["spec"]["template"]["spec"], job["spec"]["template"]["metadata"]
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        mounts = {}
        for mount in container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            folder = self.folder / "volumes" / mount["name"]
            if "persistentVolumeClaim" in volume and mount["mountPath"] == names.MODELS_MOUNT_DIR:
                folder = models_dir
            elif "emptyDir" in volume and Path(mount["mountPath"]).exists():
                continue  # this machine has such a scratch folder too, /tmp say
            elif not {"downwardAPI", "emptyDir"} & set(volume):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = folder
            for item in volume.get("downwardAPI", {}).get("items", ()):
                annotation = item["fieldRef"]["fieldPath"].partition("'")[2].rstrip("']")
                (folder / item["path"]).write_text(metadata.get("annotations", {}).get(annotation, ""))
        return mounts

    def _environment(
        self,
        container: Manifest,
        mounts: dict[str, Path],
        slots: Sequence[str],
        environment: Mapping[str, str],
    ) -> dict[str, str]:
        variables = {
            name: value for name, value in environment.items() if name.upper() not in NOT_FOR_TRAINERS
        }
        for entry in container.get("env") or ():
            if "value" in entry:
                variables[entry["name"]] = _mounted(str(entry["value"]), mounts)
        here = str(Path(sys.executable).parent)
        variables["PATH"] = os.pathsep.join([here, environment.get("PATH", os.defpath)])
        variables["PYTHONUNBUFFERED"] = "1"
        variables[names.TERMINATION_MESSAGE_PATH_VARIABLE] = str(self.folder / "termination-log")
        if list(slots) != ["cpu"]:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(slots)
        return variables

    def _last_seen(self) -> str:
        """Return when the attempt surely still ran: the time that the machine was off is not trained."""
        logged = datetime.fromtimestamp((self.folder / "log").stat().st_mtime, UTC).isoformat()
        status = self.pod["status"]
        stopped = [condition["lastTransitionTime"] for condition in status["conditions"]]
        return str(max(status["startTime"], logged, *stopped))

    def _termination_message(self) -> str:
        path = self.folder / "termination-log"
        return path.read_text(errors="replace")[:4096] if path.exists() else ""

    def _disrupted(self, why: str) -> None:
        self.pod["status"]["conditions"] = [
            {
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "Interrupted",
                "message": why,
                "lastTransitionTime": datetime.now(UTC).isoformat(),
            }
        ]

    def _save(self) -> None:
        write_json(self.folder / "pod.json", self.pod)


def _mounted(text: str, mounts: Mapping[str, Path]) -> str:
    for path, folder in mounts.items():
        if text == path or text.startswith(f"{path}/"):
            return str(folder) + text[len(path) :]
    return text


def write_json(path: Path, thing: Manifest) -> None:
    """Write a file so that after a crash it holds the old or the new, whole."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w") as file:
        json.dump(thing, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
