"""A TCP proxy that puts network faults between a client and any server.

with TcpProxy("127.0.0.1", node.port) as proxy:
    connect to ("127.0.0.1", proxy.port)

proxy.cut()      reset every open connection; new ones work
proxy.refuse()   reset every open connection and refuse new ones, until resume()
proxy.stall()    carry no byte in either direction and close nothing, until resume()
proxy.hold_at(b"text")               stall when a client sends bytes that hold the text, before they pass
proxy.hold_at(b"text", passed=True)  ... right after they have passed; proxy.held is set when that happens
proxy.resume()   carry on; stalled bytes arrive now, except on connections that were cut meanwhile
proxy.connections   how many are open
"""

import contextlib
import socket
import struct
import threading
from typing import Self

from tests.parts.ports import free_port

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._hold: tuple[bytes, bool] | None = None
        self.held = threading.Event()
        self.port = free_port()
        self._listener = self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._pairs)

    def cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                _reset(end)

    def refuse(self) -> None:
        _stop_listening(self._listener)
        self.cut()

    def stall(self) -> None:
        self._flowing.clear()

    def hold_at(self, text: bytes, *, passed: bool = False) -> None:
        self.held.clear()
        self._hold = (text, passed)

    def resume(self) -> None:
        self._hold = None
        self._flowing.set()
        if self._listener.fileno() == -1:
            self._listener = self._listen()

    def close(self) -> None:
        self.refuse()
        self._flowing.set()  # lets stalled threads see that their sockets are gone

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # refuse() closed the listener
            try:
                server = socket.create_connection(self._target, timeout=10)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        pair = (client, server)
        for end in pair:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.add(pair)
        back = threading.Thread(target=self._carry, args=(server, client, False), daemon=True)
        back.start()
        self._carry(client, server, True)
        back.join()
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            end.close()

    def _carry(self, source: socket.socket, sink: socket.socket, from_client: bool) -> None:
        """Carry bytes until their source ends; an end that is lost takes the other with it."""
        try:
            while data := source.recv(65536):
                self._flowing.wait()
                hold = self._hold
                if from_client and hold and hold[0] in data:
                    self._flowing.clear()
                    if hold[1]:
                        sink.sendall(data)
                        data = b""
                    self.held.set()
                    self._flowing.wait()
                sink.sendall(data)
            self._flowing.wait()
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            _reset(source)
            _reset(sink)


def _reset(end: socket.socket) -> None:
    """Close with a TCP reset, and wake a thread that waits in recv."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _stop_listening(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
    listener.close()
