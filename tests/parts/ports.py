"""A port for a server that will be stopped and started again on it."""

import random
import socket
from typing import Final

# Below the range from which Linux takes the ports of outgoing connections: those could take it meanwhile.
_RANGE: Final = range(20000, 32000)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on."""
    for port in random.sample(_RANGE, k=100):
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"none of 100 ports between {_RANGE.start} and {_RANGE.stop} is free")
