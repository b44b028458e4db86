"""Container logs: what tests write, and what pods/log answers of it."""

import threading
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import Any

from tests.parts import kube_status
from tests.parts.http_server import HttpResponse
from tests.parts.kube_calls import ApiCall
from tests.parts.kube_status import ApiError
from tests.parts.kube_store import Key, Store


class Logs:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._written = threading.Condition()
        self._lines: dict[Key, list[tuple[float, str]]] = {}

    def write(self, namespace: str, pod: str, text: str) -> None:
        """Append the lines of text to the log of the pod's container."""
        with self._written:
            lines = self._lines.setdefault((namespace, pod), [])
            lines.extend((time.time(), line) for line in text.splitlines())
            self._written.notify_all()

    def answer(self, call: ApiCall) -> HttpResponse:
        """Raises ApiError 404 without such a pod, 400 while a node has not started its container."""
        stored = self._store.get("pods", call.key)
        if stored is None:
            raise kube_status.not_found("pods", call.name)
        names = [container["name"] for container in stored.value["spec"]["containers"]]
        container = call.query.get("container") or names[0]
        if container not in names:
            raise ApiError(400, f"container {container} is not valid for pod {call.name}")
        if not stored.value["spec"].get("nodeName"):
            return HttpResponse(204, content_type="")
        waiting = _waiting(stored.value, container)
        if waiting:
            raise ApiError(
                400, f'container "{container}" in pod "{call.name}" is waiting to start: {waiting}'
            )
        if call.query.get("follow") == "true":
            return HttpResponse(content_type="text/plain", stream=self._follow(call))
        text = "".join(self._select(call, self._lines.get(call.key, []))).encode()
        limit = call.query.get("limitBytes")
        return HttpResponse(content_type="text/plain", body=text[: int(limit)] if limit else text)

    def _select(self, call: ApiCall, lines: list[tuple[float, str]]) -> Iterator[str]:
        since = call.query.get("sinceSeconds")
        if since:
            lines = [line for line in lines if line[0] >= time.time() - int(since)]
        tail = call.query.get("tailLines")
        if tail is not None:
            lines = lines[-int(tail) :] if int(tail) else []
        for written, text in lines:
            if call.query.get("timestamps") == "true":
                text = f"{datetime.fromtimestamp(written, UTC).isoformat()} {text}"
            yield text + "\n"

    def _follow(self, call: ApiCall) -> Generator[bytes, None, None]:
        with self._written:
            seen = len(self._lines.get(call.key, []))
            first = "".join(self._select(call, self._lines.get(call.key, []))).encode()
        yield first
        while True:
            pod = self._store.get("pods", call.key)
            with self._written:
                if len(self._lines.get(call.key, [])) == seen:
                    self._written.wait(0.2)
                fresh = self._lines.get(call.key, [])[seen:]
                seen += len(fresh)
            yield "".join(text + "\n" for _, text in fresh).encode()
            if not fresh and (pod is None or pod.value["status"].get("phase") in ("Succeeded", "Failed")):
                return


def _waiting(pod: dict[str, Any], container: str) -> str:
    """Return why the container has no log yet, or nothing when it has."""
    for status in pod["status"].get("containerStatuses", ()):
        if status["name"] == container:
            waiting: str = status["state"].get("waiting", {}).get("reason", "")
            return "" if status.get("restartCount") else waiting
    return "PodInitializing"
