"""The backend's part: a real HTTP server that checks the bearer token and records every PATCH.

    with Receiver(token="secret") as receiver:
        receiver.url                            http://127.0.0.1:PORT
        receiver.status_url(42)                 {url}/api/models/42/status
        receiver.patches                        a copy of what came, in order: list[Patch]
        receiver.statuses("/api/models/42/status")
                                                ["processing", "completed"]: what was answered 2xx, each once
        receiver.wait_for(lambda patches: len(patches) == 3, timeout=10)     list[Patch], or TimeoutError

What it answers, in this order: the next of `receiver.script` (a queue of Answer), else `receiver.answer`
(a function Patch -> Answer, or None), else 200. A wrong token is 401 and a method other than PATCH 405,
both recorded, neither takes from the script.

    receiver.script.extend([Answer(500), Answer(429, {"Retry-After": "1"}), Answer(302, {"Location": url})])
    receiver.answer = lambda patch: Answer(410)
    Answer(delay=3)  waits, then answers;  Answer(reset=True)  cuts the connection without an answer
    Answer(hang=True)  reads the request and says nothing, until the receiver stops or release() is called
    receiver.stop(), receiver.start()   down and up again on the same port; records are kept

By hand, until SIGINT or SIGTERM: `python -m tests.parts.receiver --port P --token T --file statuses.jsonl`.
"""

import argparse
import contextlib
import hmac
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tests.parts.http_server import DropConnectionError, HttpRequest, HttpResponse, HttpServer


@dataclass(frozen=True)
class Answer:
    """One scripted answer; delay in seconds."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"{}"
    delay: float = 0
    hang: bool = False
    reset: bool = False


@dataclass(frozen=True)
class Patch:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    json: Any
    """The decoded body, None when it is not JSON."""
    monotonic: float
    """time.monotonic() at arrival."""
    time: float
    """time.time() at arrival."""
    answered: int
    """The status that it got: 0 where the connection was reset or hangs."""

    @property
    def status(self) -> str | None:
        """training_status of the body, None when it has none."""
        return self.json.get("training_status") if isinstance(self.json, dict) else None


class Receiver:
    """Records every request; file, when given, gets each PATCH with the right token as a line of JSON."""

    def __init__(self, token: str, port: int = 0, file: Path | None = None) -> None:
        self.token = token
        self.script: deque[Answer] = deque()
        self.answer: Callable[[Patch], Answer] | None = None
        self._file = file
        self._patches: list[Patch] = []
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = HttpServer(self._handle, port)
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    def status_url(self, style_id: int | str) -> str:
        return f"{self.url}/api/models/{style_id}/status"

    @property
    def patches(self) -> list[Patch]:
        with self._changed:
            return list(self._patches)

    def statuses(self, path: str) -> list[str | None]:
        """training_status of the PATCHes to path that were answered 2xx, a repeated webhook-id once."""
        seen: set[str] = set()
        statuses: list[str | None] = []
        for patch in self.patches:
            identity = patch.headers.get("webhook-id", "")
            if patch.path != path or not 200 <= patch.answered < 300 or identity in seen:
                continue
            seen.update({identity} - {""})
            statuses.append(patch.status)
        return statuses

    def wait_for(self, condition: Callable[[list[Patch]], bool], timeout: float = 10) -> list[Patch]:
        """Return what came once condition holds of it.

        Raises:
            TimeoutError: it does not hold after timeout seconds; the text lists what came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self._patches), timeout):
                came = [(patch.path, patch.status, patch.answered) for patch in self._patches]
                raise TimeoutError(f"after {timeout} s the receiver has only {came}")
            return list(self._patches)

    def clear(self) -> None:
        with self._changed:
            self._patches.clear()

    def release(self) -> None:
        """End the connections that hang, without an answer."""
        self._released.set()
        self._released = threading.Event()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Refuse connections from now on and cut those that are open."""
        self.release()
        self._server.stop()

    def _handle(self, request: HttpRequest) -> HttpResponse:
        released = self._released
        answer = self._record(request)
        if answer.delay:
            time.sleep(answer.delay)
        if answer.hang:
            released.wait()
        if answer.hang or answer.reset:
            raise DropConnectionError
        return HttpResponse(answer.status, answer.body, answer.headers)

    def _record(self, request: HttpRequest) -> Answer:
        """Record a request and return the answer that it gets."""
        try:
            decoded = json.loads(request.body)
        except ValueError:
            decoded = None
        patch = Patch(
            method=request.method,
            path=request.path,
            headers=request.headers,
            body=request.body,
            json=decoded,
            monotonic=time.monotonic(),
            time=time.time(),
            answered=0,
        )
        with self._changed:
            answer = self._decide(patch)
            patch = replace(patch, answered=0 if answer.hang or answer.reset else answer.status)
            self._patches.append(patch)
            if patch.answered not in (401, 405):
                self._write(patch)
            self._changed.notify_all()
        return answer

    def _decide(self, patch: Patch) -> Answer:
        token = patch.headers.get("authorization", "").encode()
        if not hmac.compare_digest(token, f"Bearer {self.token}".encode()):
            return Answer(401, body=b'{"detail": "wrong bearer token"}')
        if patch.method != "PATCH":
            return Answer(405, {"Allow": "PATCH"})
        if self.script:
            return self.script.popleft()
        return self.answer(patch) if self.answer else Answer()

    def _write(self, patch: Patch) -> None:
        if self._file is None:
            return
        line = {"time": patch.time, "path": patch.path, "answered": patch.answered, "body": patch.json}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Run a receiver in the foreground; print its URL when it listens."""
    parser = argparse.ArgumentParser(description="Play the backend until SIGINT or SIGTERM.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--token", required=True, help="the bearer token that a PATCH must carry")
    parser.add_argument("--file", type=Path, help="gets each PATCH as a line of JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        Receiver(arguments.token, arguments.port, arguments.file) as receiver,
    ):
        print(receiver.url, flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
