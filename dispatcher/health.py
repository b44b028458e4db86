"""/healthz, /readyz and /metrics for kubelet and Prometheus."""

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CONTENT_TYPE_LATEST


class HealthServer:
    """Serves until closed.

    Args:
        alive: False makes kubelet restart the pod: only for what a restart mends.
        ready: False takes the pod out of service.
    """

    def __init__(
        self, port: int, alive: Callable[[], bool], ready: Callable[[], bool], metrics: Callable[[], bytes]
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics":
                    self._answer(200, metrics(), CONTENT_TYPE_LATEST)
                elif self.path in ("/healthz", "/readyz"):
                    good = alive() if self.path == "/healthz" else ready()
                    self._answer(200 if good else 503, b"ok\n" if good else b"not ok\n", "text/plain")
                else:
                    self._answer(404, b"not found\n", "text/plain")

            def _answer(self, status: int, body: bytes, content_type: str) -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """A probe every few seconds is not worth a line."""

        self._server = _Server(("", port), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    """Listens on IPv4 and IPv6, where the machine has both: kubelet probes the address that the pod has."""

    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()
