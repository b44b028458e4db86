"""Who holds a Lease: a name that no two living processes share, and that survives a crash."""

import fcntl
import os
import socket
import uuid
from pathlib import Path


def lease_identity(folder: Path, lease: str) -> str:
    """Return a name for this process, kept in a file that it locks for as long as it lives.

    A container that is started again after a crash finds the file in its pod's folder and goes on with its
    own Lease at once. A second process there finds the lock taken and gets another name, though it may have
    the same host name and process id, as pods with hostNetwork do. Where nothing can be written the name is
    new each time, and a Lease that was not handed back runs out first.

    Args:
        folder: of this pod or machine, such as that of temporary files.
        lease: the name of the Lease.
    """
    name = f"{socket.gethostname()}-{uuid.uuid4()}"
    try:
        # Never closed: the lock is to end with the process.
        file = os.open(folder / f"lora-trainer-{lease}.holder", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return name
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return name
    kept = os.read(file, 300).decode(errors="replace")
    if not kept:
        os.write(file, name.encode())
    return kept or name
