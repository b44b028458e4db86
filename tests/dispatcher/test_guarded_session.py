"""The connection under a PATCH, on real sockets: how long it may take, and whose certificate counts."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.webhook import Answer, Delivered, TryAgain, Webhook
from job_contract.settings import InvalidSettingsError
from tests.parts.receiver import Receiver
from tests.parts.tls import certificate, tls_in_front_of

NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def patch(url: str, **options: Any) -> Answer:
    return Webhook(AllowedHosts(["127.0.0.1", "slow.example.com"]), "backend-token", **options).patch(
        url, {"style_id": 42}, "msg_1"
    )


@contextmanager
def server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Yield a port where talk is had with the first client, once that has sent something."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(20)
        assert not thread.is_alive()


def dripping(first: bytes, drop: bytes) -> Callable[[socket.socket], None]:
    """Send one drop after the other, each within the timeout, until the client has had enough."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(first)
        pause = threading.Event()
        try:
            for _ in range(100):
                connection.sendall(drop)
                pause.wait(0.05)
        except OSError:
            return  # the client has hung up

    return talk


DRIPS = pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
    ],
    ids=["a header by bytes", "100 again and again", "103 again and again"],
)


@DRIPS
def test_an_answer_that_comes_drop_by_drop_holds_a_worker_no_longer_than_the_timeout(
    first: bytes, drop: bytes
) -> None:
    """Each read was within the timeout, so one PATCH could take for ever, and outlast the Lease."""
    with server(dripping(first, drop)) as port:
        answer = patch(f"http://127.0.0.1:{port}/", timeout_seconds=0.5)
    assert answer == TryAgain("the backend did not answer in full within 0.5 seconds")


def test_silence_after_the_first_bytes_is_waited_through_for_what_is_left_of_the_time_only() -> None:
    def talk(connection: socket.socket) -> None:
        threading.Event().wait(1.8)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while connection.recv(65536):
            pass  # until the client hangs up

    with server(talk) as port:
        began = time.monotonic()
        assert isinstance(patch(f"http://127.0.0.1:{port}/", timeout_seconds=2), TryAgain)
        assert time.monotonic() - began < 3.5, "another whole timeout began"


@DRIPS
def test_an_answer_that_comes_drop_by_drop_over_tls_is_given_up_too(
    first: bytes, drop: bytes, tmp_path: Path
) -> None:
    files = certificate(tmp_path)
    with server(dripping(first, drop)) as behind, tls_in_front_of(behind, files) as port:
        answer = patch(f"https://127.0.0.1:{port}/", timeout_seconds=0.5, ca_bundle=files[0])
    assert answer == TryAgain("the backend did not answer in full within 0.5 seconds")


@pytest.mark.parametrize(
    "before",
    [
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n",
    ],
)
def test_what_comes_before_the_answer_is_not_taken_for_a_refusal(before: bytes) -> None:
    """A 103 before the 200 parked the status for good."""
    with server(lambda connection: connection.sendall(before + NO_CONTENT)) as port:
        assert patch(f"http://127.0.0.1:{port}/") == Delivered()


def test_a_header_of_an_early_hint_is_no_header_of_the_answer() -> None:
    before = b"HTTP/1.1 103 Early Hints\r\nRetry-After: 100\r\nContent-Length: 7\r\n\r\n"
    final = b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\n\r\n"
    with server(lambda connection: connection.sendall(before + final)) as port:
        assert patch(f"http://127.0.0.1:{port}/") == TryAgain("the backend answered 503", 3)


def test_nothing_is_sent_once_connecting_alone_has_taken_longer_than_the_timeout(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up of a name has no limit of its own, and by then another dispatcher may relay."""
    real, port = socket.getaddrinfo, receiver.url.rpartition(":")[2]

    def look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "slow.example.com":
            threading.Event().wait(0.4)
            host = "127.0.0.1"
        return real(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    answer = patch(f"http://slow.example.com:{port}/x", timeout_seconds=0.2)
    assert isinstance(answer, TryAgain)
    assert "0.2 seconds" in answer.reason
    assert patch(f"http://slow.example.com:{port}/x", timeout_seconds=5) == Delivered()
    assert len(receiver.patches) == 1


def test_a_backend_of_a_private_ca_is_reached_with_its_certificate_and_not_without(
    receiver: Receiver, tmp_path: Path
) -> None:
    files = certificate(tmp_path)
    with tls_in_front_of(int(receiver.url.rpartition(":")[2]), files) as port:
        url = f"https://127.0.0.1:{port}/x"
        assert patch(url, ca_bundle=files[0]) == Delivered()
        answer = patch(url)
        assert isinstance(answer, TryAgain)
        assert "CERTIFICATE_VERIFY_FAILED" in answer.reason
    assert len(receiver.patches) == 1


@pytest.mark.parametrize("text", [None, "", "no certificate"], ids=["missing", "empty", "no certificate"])
def test_a_ca_bundle_that_cannot_be_used_is_named_at_once(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "ca.pem"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidSettingsError, match=f"REQUESTS_CA_BUNDLE {path}"):
        Webhook(AllowedHosts([]), ca_bundle=path)
