"""Events: those that the dispatcher leaves on a Job, and those that say why a training does not start."""

import json
import queue
import time
from datetime import UTC, datetime
from typing import Final

import structlog
import urllib3
from kubernetes import client
from kubernetes.client import ApiException

from dispatcher.backends.kubernetes_client import describe
from dispatcher.job import Manifest
from job_contract.redaction import redact

_TIMEOUT: Final = (5, 30)
_MOST_READ: Final = 500


class Events:
    """Writes on a thread of its own and reads when asked; a lost Event loses no status."""

    def __init__(self, core: client.CoreV1Api, namespace: str) -> None:
        self._core = core
        self._namespace = namespace
        self._to_write: queue.SimpleQueue[Manifest | None] = queue.SimpleQueue()
        self._log = structlog.get_logger("kubernetes")

    def about(self, uid: str) -> tuple[Manifest, ...]:
        """Return the Events about an object, in no order; none where they cannot be read."""
        try:
            response = self._core.list_namespaced_event(
                self._namespace,
                field_selector=f"involvedObject.uid={uid}",
                limit=_MOST_READ,
                _preload_content=False,
                _request_timeout=_TIMEOUT,
            )
            return tuple(json.loads(response.data)["items"] or ())
        except (ApiException, urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError) as error:
            self._log.warning("the Events could not be read", about=uid, error=describe(error))
            return ()

    def record(self, job: Manifest, reason: str, message: str, *, warning: bool) -> None:
        """Hand an Event about a Job to the thread that writes them."""
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        metadata = job["metadata"]
        self._to_write.put(
            {
                "metadata": {"name": f"{metadata['name']}.{time.time_ns():x}"},
                "involvedObject": {
                    "apiVersion": "batch/v1",
                    "kind": "Job",
                    "name": metadata["name"],
                    "namespace": self._namespace,
                    "uid": metadata["uid"],
                },
                "type": "Warning" if warning else "Normal",
                "reason": reason,
                "message": redact(message)[:1000],
                "source": {"component": "lora-trainer-dispatcher"},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
        )

    def close(self) -> None:
        """Let `run` end once what was recorded is written."""
        self._to_write.put(None)

    def run(self) -> None:
        while (event := self._to_write.get()) is not None:
            try:
                self._core.create_namespaced_event(
                    self._namespace, event, _preload_content=False, _request_timeout=_TIMEOUT
                ).read()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next Event is written
                self._log.info("an Event could not be written", error=describe(error))
