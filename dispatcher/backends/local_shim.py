"""Stands between the dispatcher and a training on one machine, as containerd-shim does.

`python -m dispatcher.backends.local_shim FOLDER COMMAND...` runs the command, waits, and leaves its exit
code in FOLDER/exit.json. So the dispatcher may be killed at any moment and still learn, once it is
back, how the training ended. The lock that it inherits is held as long as it lives: who can take
that lock knows that it has ended.
"""

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path


def main(folder: Path, command: list[str]) -> int:
    # The group gets the signals, the command too; this process only has to outlive it.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    aside = folder / "pid.new"
    aside.write_text(str(os.getpid()))
    aside.rename(folder / "pid")
    code = subprocess.call(command, stdin=subprocess.DEVNULL)
    ended = {"exitCode": code if code >= 0 else 128 - code, "finishedAt": datetime.now(UTC).isoformat()}
    aside = folder / "exit.json.new"
    with aside.open("w") as file:
        json.dump(ended, file)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / "exit.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
