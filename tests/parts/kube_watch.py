"""Watches: the changes after a version as a stream of JSON lines, with bookmarks and all that goes wrong."""

import json
import time
from collections.abc import Generator, Iterator
from typing import Any, Final

from tests.parts.http_server import DropConnectionError, HttpResponse
from tests.parts.kube_calls import ApiCall
from tests.parts.kube_selectors import Matcher
from tests.parts.kube_status import ApiError
from tests.parts.kube_store import Change, Store, Stored, with_metadata
from tests.parts.kube_verbs import encoded, selector

_DEFAULT_TIMEOUT_SECONDS: Final = 1800.0
_LOOK_FOR_LOST_CLIENT_SECONDS: Final = 0.5
_EMPTY_SPECS: Final = {
    "jobs": {"template": {"metadata": {}, "spec": {"containers": None}}},
    "pods": {"containers": None},
}


class Watches:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.bookmark_interval = 60.0
        """Seconds between bookmarks, for watches that allow them."""
        self.gone_as_status = False
        """Answer a version that is too old with HTTP status 410 instead of an ERROR event in the stream."""
        self._silent = False
        self.open = 0
        self._ending = 0
        self._how_to_end = ""

    def end(self, how: str) -> None:
        """End all open watches: 'close' cleanly, 'reset' the connection, or 'expire' by a 410 ERROR event."""
        with self._store.changed:
            self._ending += 1
            self._how_to_end = how
            self._store.changed.notify_all()

    def set_silent(self, silent: bool) -> None:
        """While silent, open watches and new ones send nothing at all and stay open."""
        with self._store.changed:
            self._silent = silent
            self._store.changed.notify_all()

    def answer(self, call: ApiCall) -> HttpResponse:
        """Raises ApiError."""
        matches = selector(call)
        text = call.query.get("resourceVersion") or "0"
        if not text.isdigit():
            parsing = f'strconv.ParseUint: parsing "{text}": invalid syntax'
            raise ApiError(500, f'resourceVersion: Invalid value: "{text}": {parsing}', "")
        asked = int(text)
        too_old = 0 < asked < self._store.compacted
        gone = ApiError(410, f"too old resource version: {asked} ({self._store.compacted})")
        if too_old and self.gone_as_status:
            raise gone
        if too_old:
            return HttpResponse(body=_error_line(gone))
        return HttpResponse(stream=self._stream(call, matches, asked))

    def _stream(self, call: ApiCall, matches: Matcher, version: int) -> Generator[bytes, None, None]:
        with self._store.changed:
            self.open += 1
            ending = self._ending
        try:
            if version == 0 or call.query.get("sendInitialEvents") == "true":
                version, lines = self._initial(call, matches)
                yield lines
            yield from self._changes(call, matches, version, ending)
        finally:
            with self._store.changed:
                self.open -= 1

    def _initial(self, call: ApiCall, matches: Matcher) -> tuple[int, bytes]:
        """What is there, as ADDED events."""
        with self._store.changed:
            version = self._store.version
            stored = self._store.all(call.resource.plural, call.namespace)
        lines = [_line(b"ADDED", call, item) for item in stored if matches(item.value)]
        if call.query.get("sendInitialEvents") == "true":
            lines.append(_bookmark(call, version, {"k8s.io/initial-events-end": "true"}))
        return version, b"".join(lines)

    def _changes(self, call: ApiCall, matches: Matcher, version: int, ending: int) -> Iterator[bytes]:
        timeout = float(call.query.get("timeoutSeconds") or _DEFAULT_TIMEOUT_SECONDS)
        deadline = time.monotonic() + timeout
        bookmarks = call.query.get("allowWatchBookmarks") in ("true", "1")
        next_bookmark = time.monotonic() + self.bookmark_interval
        while True:
            with self._store.changed:
                behind = self._store.changes_after(call.resource.plural, version) and not self._silent
                if not behind and ending == self._ending and time.monotonic() < deadline:
                    self._store.changed.wait(min(_LOOK_FOR_LOST_CLIENT_SECONDS, self.bookmark_interval))
                ended, how, silent = ending != self._ending, self._how_to_end, self._silent
                changes = [] if silent else self._store.changes_after(call.resource.plural, version)
                # Behind the changes just read, there are none of this resource up to the store's version.
                version = version if silent else max(version, self._store.version)
            yield b"".join(_lines(call, matches, changes))
            if ended and how == "reset":
                raise DropConnectionError
            if ended and how == "expire":
                yield _error_line(ApiError(410, f"too old resource version: {version}"))
            over = time.monotonic() >= deadline
            if bookmarks and not silent and not ended and (over or time.monotonic() >= next_bookmark):
                yield _bookmark(call, version, {})
                next_bookmark = time.monotonic() + self.bookmark_interval
            if ended or (over and not silent):
                return


def _lines(call: ApiCall, matches: Matcher, changes: list[Change]) -> Iterator[bytes]:
    """What a watch with selectors sees: an object that starts to match is ADDED, one that stops DELETED."""
    for change in changes:
        value = change.after.value
        if call.namespace and value["metadata"].get("namespace") != call.namespace:
            continue
        before = change.before is not None and matches(change.before)
        after = change.type != "DELETED" and matches(value)
        if after:
            yield _line(b"MODIFIED" if before else b"ADDED", call, change.after)
        elif before and change.type == "DELETED":
            yield _line(b"DELETED", call, change.after)
        elif before and change.before is not None:
            left = with_metadata(change.before, resourceVersion=str(change.version))
            yield _line(b"DELETED", call, Stored(left, change.version, change.after.created))


def _line(kind: bytes, call: ApiCall, stored: Stored) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind, encoded(call.resource, stored))


def _bookmark(call: ApiCall, version: int, annotations: dict[str, str]) -> bytes:
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if annotations:
        metadata["annotations"] = annotations
    value: dict[str, Any] = {"kind": call.resource.kind, "apiVersion": call.resource.api_version}
    value["metadata"] = metadata
    if call.resource.plural in _EMPTY_SPECS:
        value |= {"spec": _EMPTY_SPECS[call.resource.plural], "status": {}}
    return json.dumps({"type": "BOOKMARK", "object": value}).encode() + b"\n"


def _error_line(error: ApiError) -> bytes:
    return json.dumps({"type": "ERROR", "object": error.status()}).encode() + b"\n"
