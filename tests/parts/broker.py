"""A private RabbitMQ node: own port, folder, cookie and node name, on loopback only, gone when it stops.

    with RabbitNode(folder) as node:
        pika.BlockingConnection(pika.URLParameters(node.url))

    node.start()     returns when the broker answers; starting twice is harmless
    node.stop()      graceful: durable queues and persistent messages are on disk; start() goes on with them
    node.kill()      SIGKILL to the whole process group, as a power cut
    node.restart()   stop() and start(), on the same port
    node.url         amqp://guest:guest@127.0.0.1:PORT/%2F, the same over restarts
    node.log_text()  what the broker wrote

`RabbitNode(folder, {"consumer_timeout": "1000"})` adds lines to rabbitmq.conf. RabbitNotFoundError says how
to install the server. By hand, until SIGINT or SIGTERM: `python -m tests.parts.broker --folder X`.
"""

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from tests.parts.ports import free_port

# Debian's /usr/sbin/rabbitmq-server switches to the user rabbitmq; this one runs as whoever calls it.
SERVER: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")

# The guard ends the whole process group when this process is gone, even by SIGKILL: its pipe then closes.
# Erlang's name daemon is part of the group. A killed one may still hold its port for a moment.
_GUARD: Final = """
exec 3<&0 </dev/null
(cat <&3 >/dev/null; kill -KILL 0) &
exec 3<&-
until epmd -names >/dev/null 2>&1; do epmd & sleep 0.1; done
exec "$@"
"""


class RabbitNotFoundError(Exception):
    """rabbitmq-server is not installed."""


class RabbitStartError(Exception):
    """The node did not start; the text holds the end of its log."""


class RabbitNode:
    """One broker process; folder (made if missing) holds its data, log and configuration."""

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder.resolve()
        self.port = free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"
        self._distribution_port = free_port()
        self._epmd_port = free_port()
        self._name = f"lora-{secrets.token_hex(4)}@localhost"
        self._settings = dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self, timeout: float = 60) -> None:
        """Start the node and return when it answers.

        Raises:
            RabbitNotFoundError: the server is not installed.
            RabbitStartError: it ended, or does not answer within timeout seconds.
        """
        if self._process is not None:
            return
        if not SERVER.exists():
            raise RabbitNotFoundError(
                "rabbitmq-server is not installed; run `apt-get install rabbitmq-server`, or set AMQP_URL"
            )
        self._write_configuration()
        with (self.folder / "output.log").open("ab") as output:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "guard", str(SERVER)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                cwd=self.folder,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(self._process, timeout)
        except BaseException:
            self.kill()
            raise

    def stop(self, timeout: float = 20) -> None:
        """Stop the node gracefully, and surely after timeout seconds."""
        if self._process is None:
            return
        try:
            self._process.terminate()
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()

    def kill(self) -> None:
        """End every process of the node at once."""
        process, self._process = self._process, None
        if process is None:
            return
        # The guard is in the group until it is killed here, so the group's number is still ours.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        logs = [self.folder / "output.log", self.folder / "log" / "rabbit.log"]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.exists())

    def _write_configuration(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "vm_memory_high_watermark.absolute": "512MB",
            "disk_free_limit.absolute": "10MB",
            "log.file.level": "info",
            **self._settings,
        }
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "rabbitmq.conf").write_text(lines)
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "rabbitmq-env.conf").write_text("")

    def _environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_", "ERLANG_"))
        }
        return inherited | {
            "HOME": str(self.folder),  # the Erlang cookie
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": str(self.folder / "log" / "rabbit.log"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "generated"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # Erlang would start the name daemon in a session of its own, where it would outlive the node.
            "ERL_ZFLAGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "1",  # the start script then becomes the Erlang process
        }

    def _wait_until_ready(self, process: subprocess.Popen[bytes], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            if process.poll() is not None:
                raise RabbitStartError(f"RabbitMQ ended while starting:\n{self.log_text()[-3000:]}")
            if self._answers():
                return
            if time.monotonic() > deadline:
                raise RabbitStartError(
                    f"RabbitMQ does not answer after {timeout:.0f} s:\n{self.log_text()[-3000:]}"
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        """Say whether the broker answers AMQP's protocol header; its listener is the last thing to open."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) != b""
        except OSError:
            return False


def main() -> None:
    """Run a node in the foreground; print its URL when it answers."""
    parser = argparse.ArgumentParser(description="Run a private RabbitMQ node until SIGINT or SIGTERM.")
    parser.add_argument("--folder", type=Path, help="data, log and configuration; default: a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            node = stack.enter_context(RabbitNode(folder))
        except (RabbitNotFoundError, RabbitStartError) as error:
            sys.exit(str(error))
        print(node.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
