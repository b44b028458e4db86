"""A copy of one kind of object, kept fresh: list, then watch from there, list again when in doubt.

The official client's own informer has no client-side timeout and no bookmarks, so a connection that
goes silent blinds it for ever. Here every watch has a read timeout on this side, shorter than two of
the server's bookmarks; silence, 410 and any error end in a new list.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog
import urllib3
from kubernetes.client import ApiException

from dispatcher.job import Manifest
from dispatcher.retry import backoff_seconds

_SHORT_SECONDS: Final = 1.0
_LONG_SECONDS: Final = 10.0


class _GoneError(Exception):
    """The version to watch from is no longer kept."""


class Reflector:
    """Mirrors what `call` lists; `get` and `names` may be called from any thread.

    Args:
        call: the client's list method with its selector bound; takes the list and watch parameters.
        slim: keeps of an object what is needed; ten thousand of them stay in memory.
        changed: told of every object that was added, changed or removed, as it is or last was.
        silence_seconds: a watch that brings nothing for so long counts as broken; the API server
            sends a bookmark about once a minute.
    """

    def __init__(
        self,
        kind: str,
        call: Callable[..., Any],
        slim: Callable[[Manifest], Manifest],
        changed: Callable[[Manifest], None],
        silence_seconds: float = 100.0,
    ) -> None:
        self._kind = kind
        self._call = call
        self._slim = slim
        self._changed = changed
        self._silence_seconds = silence_seconds
        self._things: dict[str, bytes] = {}  # as JSON: a quarter of the memory of dicts
        self._lock = threading.Lock()
        self._response: urllib3.HTTPResponse | None = None
        self._last_contact = time.monotonic()
        self.synced = threading.Event()
        self._log = structlog.get_logger("reflector")

    def get(self, name: str) -> Manifest | None:
        with self._lock:
            packed = self._things.get(name)
        return None if packed is None else json.loads(packed)

    def names(self) -> list[str]:
        with self._lock:
            return list(self._things)

    @property
    def silent_for(self) -> float:
        """Seconds since the API server was last heard of."""
        return time.monotonic() - self._last_contact

    def close(self) -> None:
        """End a watch that is under way; `run` returns once its stop event is set too."""
        response = self._response
        if response is not None:
            try:
                response.shutdown()
            except (ValueError, OSError, RuntimeError) as error:
                self._log.debug("the watch had ended already", error=str(error))

    def load(self) -> None:
        """List once; ApiException and urllib3's errors pass through."""
        self._list()

    def run(self, stop: threading.Event) -> None:
        attempt = 0
        while not stop.is_set():
            began = time.monotonic()
            try:
                version = self._list()
                while not stop.is_set():
                    began = time.monotonic()
                    version = self._watch(version)
                    if time.monotonic() - began < _SHORT_SECONDS:
                        stop.wait(backoff_seconds(1, first=0.2))  # a server that hangs up on everybody
            except _GoneError:
                self._log.info("the watched version is gone, listing again", kind=self._kind)
                stop.wait(backoff_seconds(1, first=0.1))
            except Exception as error:  # noqa: BLE001 - whatever an API server answers, look again
                if stop.is_set():
                    return
                # Only a watch that held for a while starts the back-off afresh: lists are dear.
                attempt = 1 if time.monotonic() - began > _LONG_SECONDS else attempt + 1
                delay = backoff_seconds(attempt, first=0.5, most=30)
                self._log.warning(
                    "watch broken, listing again",
                    kind=self._kind,
                    error=_brief(error),
                    again_in=round(delay, 1),
                )
                stop.wait(delay)

    def _list(self) -> str:
        listed: dict[str, bytes] = {}
        token, version = None, ""
        while True:
            response = self._call(
                limit=200, _continue=token, _preload_content=False, _request_timeout=(5, 60)
            )
            page = json.loads(response.data)
            for thing in page.get("items") or ():
                listed[thing["metadata"]["name"]] = _pack(self._slim(thing))
            version, token = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
            if not token:
                break
        self._last_contact = time.monotonic()
        with self._lock:
            before, self._things = self._things, listed
        for name, packed in listed.items():
            if before.pop(name, None) != packed:
                self._changed(json.loads(packed))
        for removed in before.values():
            self._changed(json.loads(removed))
        self.synced.set()
        return str(version)

    def _watch(self, version: str) -> str:
        """Follow the changes since a version until the server ends the stream; return the last version."""
        try:
            response = self._call(
                watch=True,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=random.randint(240, 300),  # noqa: S311 - spreads reconnects, guards nothing
                _preload_content=False,
                _request_timeout=(5, self._silence_seconds),
            )
        except ApiException as error:
            if error.status == 410:
                raise _GoneError from error
            raise
        self._response = response
        try:
            for event in _events(response):
                self._last_contact = time.monotonic()
                version = self._apply(event, version)
        finally:
            self._response = None
            response.close()  # what is left of the stream must not answer the next request
        return version

    def _apply(self, event: Manifest, version: str) -> str:
        kind, thing = event["type"], event["object"]
        if kind == "ERROR":
            if thing.get("code") == 410:
                raise _GoneError
            raise ValueError(f"the watch ended: {thing.get('message')}")
        if kind != "BOOKMARK":
            name, slim = thing["metadata"]["name"], self._slim(thing)
            with self._lock:
                if kind == "DELETED":
                    self._things.pop(name, None)
                else:
                    self._things[name] = _pack(slim)
            self._changed(slim)
        return _version(thing)


def _pack(thing: Manifest) -> bytes:
    return json.dumps(thing, separators=(",", ":")).encode()


def _events(response: urllib3.HTTPResponse) -> Iterator[Manifest]:
    rest = b""
    for chunk in response.stream(amt=None, decode_content=True):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _version(thing: Manifest) -> str:
    return str(thing["metadata"]["resourceVersion"])


def _brief(error: Exception) -> str:
    """Name an API error without its headers and body, which may hold secrets."""
    return f"{error.status} {error.reason}" if isinstance(error, ApiException) else repr(error)
