"""The dispatcher as its own process, as a cluster or a person runs it: started, killed, stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from dispatcher.queues import Queues
from tests.parts.receiver import Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ROOT = Path(__file__).parents[2]


class Dispatcher:
    """`python -m dispatcher run`; its log is in folder/dispatcher.log over all its lives."""

    def __init__(
        self, folder: Path, amqp_url: str, queues: Queues, receiver: Receiver, **settings: str
    ) -> None:
        self._log = folder / "dispatcher.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "AMQP_URL": amqp_url,
            "QUEUE": queues.work,
            "BACKEND_URL": receiver.url,
            "BACKEND_TOKEN": receiver.token,
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_FIRST_RETRY_SECONDS": "0.1",
            "WEBHOOK_MOST_RETRY_SECONDS": "0.5",
            "WEBHOOK_TIMEOUT_SECONDS": "5",
            "LOG_FORMAT": "json",
            **settings,
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.log_text()[-6000:])
        self.kill()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "run"],
                env=self._environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill(self) -> None:
        """SIGKILL, as the kernel or a node does it; harmless when it has ended."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it has not ended after timeout seconds.
        """
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(timeout)
        self._process = None
        return code

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another subcommand with the same settings."""
        return subprocess.run(
            [sys.executable, "-m", "dispatcher", *arguments],
            env=self._environment,
            cwd=self._log.parent,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log_text(self) -> str:
        return self._log.read_text() if self._log.exists() else ""


def ends(receiver: Receiver, styles: range) -> list[str | None]:
    """Return the last status of each style that the backend took any of."""
    statuses = [receiver.statuses(f"/api/models/{style}/status") for style in styles]
    return [told[-1] for told in statuses if told]
