"""A small threaded HTTP/1.1 server: keep-alive, chunked streams, and connections that can be cut.

It plays the backend (receiver.py) and the API server. http.server spends most of a request on parsing
headers as an e-mail; this one is a few times as fast, which the benchmarks need.
"""

import contextlib
import json
import select
import socket
import struct
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote

from tests.parts.ports import free_port


class DropConnectionError(Exception):
    """Raised by a handler or a stream: cut the connection with a reset, without another byte."""


@dataclass(frozen=True)
class HttpRequest:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class HttpResponse:
    """stream, when given, is sent in chunks instead of body; an empty chunk only looks for a lost client."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    stream: Generator[bytes, None, None] | None = None


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpResponse:
    return HttpResponse(status, json.dumps(value).encode(), headers or {})


class HttpServer:
    """Serves on 127.0.0.1 with a thread per connection; port 0 takes a free one and keeps it."""

    def __init__(self, handle: Callable[[HttpRequest], HttpResponse], port: int = 0) -> None:
        self._handle = handle
        self.port = port or free_port()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def start(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Refuse new connections and cut those that are open."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut_connections()

    def cut_connections(self) -> None:
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                _reset_on_close(connection)
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # stop() closed it
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as reader:
                while (request := _read(reader)) is not None:
                    self._respond(connection, request)
                    if request.headers.get("connection", "").lower() == "close":
                        return
        except DropConnectionError:
            _reset_on_close(connection)
        except OSError:
            return  # the client is gone
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _respond(self, connection: socket.socket, request: HttpRequest) -> None:
        response = self._handle(request)
        head = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        head.append(f"Content-Type: {response.content_type}")
        head.extend(f"{name}: {value}" for name, value in response.headers.items())
        if response.stream is None:
            head.append(f"Content-Length: {len(response.body)}")
            # Apart, as large answers come: a client that leaves a body unread shows it.
            connection.sendall("\r\n".join([*head, "", ""]).encode())
            connection.sendall(response.body)
            return
        head.append("Transfer-Encoding: chunked")
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        with contextlib.closing(response.stream) as stream:
            for chunk in stream:
                if chunk:
                    connection.sendall(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                elif _is_gone(connection):
                    raise DropConnectionError
        connection.sendall(b"0\r\n\r\n")


def _read(reader: BinaryIO) -> HttpRequest | None:
    """Return the next request of a connection, None at its end."""
    words = reader.readline(65536).decode("latin-1").split(" ")
    if len(words) != 3:
        return None  # the end, or no HTTP
    method, target, _ = words
    headers = {}
    while (line := reader.readline(65536)) not in (b"\r\n", b"\n", b""):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join(_chunks(reader))
    else:
        length = int(headers.get("content-length", 0))
        body = reader.read(length) if length else b""
        if len(body) < length:
            raise DropConnectionError  # the client died in the middle: that was no request
    path, _, query = target.partition("?")
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    return HttpRequest(method, unquote(path), parameters, headers, body)


def _chunks(reader: BinaryIO) -> Iterator[bytes]:
    while size := int(reader.readline(1024).split(b";")[0] or b"0", 16):
        yield reader.read(size)
        reader.readline(8)
    reader.readline(8)


def _is_gone(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""


def _reset_on_close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
