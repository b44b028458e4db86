"""A real HTTP server on loopback whose every answer a test has written."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[BaseHTTPRequestHandler], None]


class ScriptedHost:
    """Answers each path with its answers in order; the last one again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        """The paths that were asked for, without query."""
        self.closing = threading.Event()
        """Answers that go on for long look at it."""
        self._answers: dict[str, list[Answer]] = {}

    def on(self, path: str, *answers: Answer) -> str:
        """Script a path and return its URL."""
        self._answers[path] = list(answers)
        return self.url + path

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        answers = self._answers[path]
        self.requests.append(path)
        (answers.pop(0) if len(answers) > 1 else answers[0])(handler)


@contextmanager
def scripted_host() -> Iterator[ScriptedHost]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                host.answer(self)
            except ConnectionError:
                self.close_connection = True  # the client has had enough

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # 5 by default, and a connection that finds no place tries again after 1 s

    with Server(("127.0.0.1", 0), Handler) as server:
        host = ScriptedHost(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield host
        finally:
            host.closing.set()
            server.shutdown()
            thread.join()


def body(content: bytes, *, length: int | None = None) -> Answer:
    """Answer 200 with content; length is what Content-Length claims, by default the truth."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content) if length is None else length))
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def status(code: int, **headers: str) -> Answer:
    """Answer with a bare status; header names are written with _ for -."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def endless(host: ScriptedHost, chunk: bytes, pause_seconds: float = 0.0) -> Answer:
    """Answer 200 without a length and send chunk for ever."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not host.closing.wait(pause_seconds):
            handler.wfile.write(chunk)
            handler.wfile.flush()

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
