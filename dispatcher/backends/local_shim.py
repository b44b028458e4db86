"""Stands between the dispatcher and a training on one machine, as containerd-shim does.

`python -m dispatcher.backends.local_shim FOLDER COMMAND...` runs the command, waits, and leaves its exit
code in FOLDER/exit.json. So the dispatcher may be killed at any moment and still learn, once it is
back, how the training ended. The lock that it inherits is held as long as it or the command lives:
who can share that lock knows that both have ended.
"""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

CANNOT_START = 128


def main(folder: Path, command: list[str]) -> None:
    # The group gets the signals, the command too; this process only has to outlive it.
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: received.append(number))
    aside = folder / "pid.new"
    aside.write_text(str(os.getpid()))
    aside.rename(folder / "pid")
    ended = {**_run(command, received), "finishedAt": datetime.now(UTC).isoformat()}
    aside = folder / "exit.json.new"
    with aside.open("w") as file:
        json.dump(ended, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / "exit.json")
    # As with a container, what the command left running ends with it, this process too.
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _run(command: list[str], received: list[int]) -> dict[str, Any]:
    """Run the command and return its exit code as Kubernetes has it."""
    try:
        # It shares the lock, so that nobody starts another one should this process be killed alone.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False)
    except OSError as error:
        message = f"{command[0]} cannot be started: {error.strerror}"
        return {"exitCode": CANNOT_START, "reason": "StartError", "message": message}
    if received:
        process.terminate()  # the signal came before the command was there to get it
    code = process.wait()
    return {"exitCode": code if code >= 0 else 128 - code}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
