"""The PATCH on a real socket: its headers, its signature, and what each answer of the backend means."""

import json
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
import standardwebhooks

from dispatcher.allowed_hosts import AllowedHosts
from dispatcher.webhook import Answer as WebhookAnswer
from dispatcher.webhook import Delivered, Refused, TryAgain, Webhook, classify
from tests.dispatcher.support import wait_until
from tests.parts.receiver import Answer, Receiver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD: dict[str, Any] = {"style_id": 42, "task_id": "täsk", "training_status": "processing"}


def webhook(receiver: Receiver, **options: Any) -> Webhook:
    options = {"token": "backend-token", "secret": SECRET, "timeout_seconds": 5, **options}
    return Webhook(AllowedHosts(["127.0.0.1"]), **options)


def send(receiver: Receiver, hook: Webhook | None = None) -> WebhookAnswer:
    return (hook or webhook(receiver)).patch(receiver.status_url(42), PAYLOAD, "msg_1_processing")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Delivered) for status in (200, 201, 202, 204, 299)),
        *((status, TryAgain) for status in (401, 403, 407, 408, 409, 423, 425, 429)),
        *((status, TryAgain) for status in (302, 303, 307, 500, 502, 503, 504, 520, 599)),
        *((status, Refused) for status in (301, 304, 308, 400, 404, 405, 410, 413, 415, 422, 501)),
    ],
)
def test_what_a_status_means(status: int, kind: type) -> None:
    answer = classify(status)
    assert isinstance(answer, kind)
    assert isinstance(answer, Delivered) or str(status) in answer.reason


def test_the_patch_has_the_headers_and_the_body_of_the_contract(receiver: Receiver) -> None:
    assert send(receiver) == Delivered()
    (patch,) = receiver.patches
    assert (patch.method, patch.path) == ("PATCH", "/api/models/42/status")
    assert patch.json == PAYLOAD
    assert patch.headers["authorization"] == "Bearer backend-token"
    assert patch.headers["x-request-source"] == "training-server"
    assert patch.headers["content-type"] == "application/json"
    assert patch.headers["webhook-id"] == "msg_1_processing"
    assert abs(int(patch.headers["webhook-timestamp"]) - patch.time) < 5


def test_the_signature_verifies_and_a_changed_body_does_not(receiver: Receiver) -> None:
    send(receiver)
    (patch,) = receiver.patches
    verifier = standardwebhooks.Webhook(SECRET)
    assert verifier.verify(patch.body.decode(), patch.headers) == PAYLOAD
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        verifier.verify(patch.body.decode().replace("processing", "completed"), patch.headers)


def test_an_attempt_is_signed_for_its_own_time_under_the_same_id(receiver: Receiver) -> None:
    hook = webhook(receiver)
    receiver.script.append(Answer(500))
    assert isinstance(send(receiver, hook), TryAgain)
    assert send(receiver, hook) == Delivered()
    for patch in receiver.patches:
        standardwebhooks.Webhook(SECRET).verify(patch.body.decode(), patch.headers)
    assert len({patch.headers["webhook-id"] for patch in receiver.patches}) == 1


def test_without_token_and_secret_neither_header_is_sent(receiver: Receiver) -> None:
    send(receiver, webhook(receiver, token=None, secret=None))
    (patch,) = receiver.patches
    assert "authorization" not in patch.headers
    assert "webhook-signature" not in patch.headers
    assert patch.headers["webhook-id"] == "msg_1_processing"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(receiver: Receiver, status: int) -> None:
    with Receiver("backend-token") as elsewhere:
        receiver.script.append(Answer(status, {"Location": elsewhere.url}))
        assert not isinstance(send(receiver), Delivered)
        assert elsewhere.patches == []
    assert len(receiver.patches) == 1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_in_seconds_is_handed_on(receiver: Receiver, status: int) -> None:
    receiver.script.append(Answer(status, {"Retry-After": "17"}))
    answer = send(receiver)
    assert isinstance(answer, TryAgain)
    assert answer.retry_after == 17


def test_retry_after_as_a_date_is_handed_on(receiver: Receiver) -> None:
    when = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    receiver.script.append(Answer(503, {"Retry-After": when}))
    answer = send(receiver)
    assert isinstance(answer, TryAgain)
    assert answer.retry_after is not None
    assert 60 < answer.retry_after <= 90


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("soon", None),
        ("-5", None),
        ("", None),
        ("1e9", None),
        ("Mon, 99 Foo 2026 99:99:99 GMT", None),
        ("9" * 5000, None),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("31536000", 21_600.0),
    ],
)
def test_a_retry_after_that_is_nonsense_breaks_nothing(
    receiver: Receiver, header: str, seconds: float | None
) -> None:
    receiver.script.append(Answer(503, {"Retry-After": header}))
    answer = send(receiver)
    assert isinstance(answer, TryAgain)
    assert answer.retry_after == seconds


def test_a_backend_that_says_nothing_is_tried_again(receiver: Receiver) -> None:
    receiver.script.append(Answer(hang=True))
    answer = send(receiver, webhook(receiver, timeout_seconds=0.3))
    assert isinstance(answer, TryAgain)


def test_a_connection_reset_or_refused_is_tried_again(receiver: Receiver) -> None:
    hook = webhook(receiver)
    receiver.script.append(Answer(reset=True))
    assert isinstance(send(receiver, hook), TryAgain)
    assert send(receiver, hook) == Delivered()
    url = receiver.status_url(42)
    receiver.stop()
    assert isinstance(hook.patch(url, PAYLOAD, "id"), TryAgain)
    receiver.start()
    assert hook.patch(url, PAYLOAD, "id") == Delivered()


def test_an_answer_without_end_does_not_hold_a_worker() -> None:
    """Only the status counts; a body that never ends is not waited for."""
    served = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
                served.wait(10)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        answer = Webhook(AllowedHosts(["127.0.0.1"])).patch(f"http://127.0.0.1:{port}/", PAYLOAD, "id")
        assert not served.is_set()
        served.set()
        thread.join()
    assert answer == Delivered()


@pytest.mark.parametrize(
    "garbage",
    [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200", b"a-" * 20_000 + b"\r\n\r\n"],
    ids=lambda garbage: garbage[:20],
)
def test_an_answer_that_is_no_http_is_tried_again(garbage: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(garbage)

        thread = threading.Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        answer = Webhook(AllowedHosts(["127.0.0.1"]), timeout_seconds=2).patch(
            f"http://127.0.0.1:{port}/", PAYLOAD, "id"
        )
        thread.join()
    assert isinstance(answer, TryAgain | Delivered)
    assert isinstance(answer, TryAgain) or garbage == b"HTTP/1.1 200"
    assert len(str(answer)) < 700, "of a long answer the beginning is quoted"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A resolver in which a name may have another address at every look-up."""
    names: dict[str, list[str]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *rest: Any, **options: Any) -> Any:
        addresses = names.get(host)
        if addresses:
            host = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return real(host, port, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


def test_a_name_that_turns_private_after_it_was_allowed_gets_not_a_byte(
    receiver: Receiver, names: dict[str, list[str]]
) -> None:
    """DNS rebinding: what counts is the peer of the connected socket, not an earlier look-up."""
    names["hook.example.com"] = ["127.0.0.1"]
    port = urlsplit(receiver.url).port
    hook = Webhook(AllowedHosts(["*.example.com"]), token="backend-token")
    answer = hook.patch(f"http://hook.example.com:{port}/x", PAYLOAD, "id")
    assert isinstance(answer, Refused)
    assert "127.0.0.1" in answer.reason
    assert receiver.patches == []


def test_a_name_that_the_operator_vouches_for_may_be_private(
    receiver: Receiver, names: dict[str, list[str]]
) -> None:
    names["hook.example.com"] = ["127.0.0.1"]
    port = urlsplit(receiver.url).port
    hook = Webhook(AllowedHosts(["hook.example.com"]), token="backend-token")
    assert hook.patch(f"http://hook.example.com:{port}/x", PAYLOAD, "id") == Delivered()


@pytest.mark.parametrize(
    "url",
    [
        "http://elsewhere/x",
        "ftp://127.0.0.1/x",
        "http://user:pw@127.0.0.1/x",
        "http://127.0.0.1:99999/x",
        "http://" + "a" * 70 + ".example.com/x",
        "http://.example.com/x",
        "http://a..example.com/x",
    ],
)
def test_a_url_that_can_never_work_is_refused_for_good(url: str) -> None:
    hook = Webhook(AllowedHosts(["127.0.0.1", "*.example.com"]))
    assert isinstance(hook.patch(url, PAYLOAD, "id"), Refused)


def test_no_secret_of_the_url_is_in_a_reason(receiver: Receiver) -> None:
    port = urlsplit(receiver.url).port
    receiver.stop()
    answer = Webhook(AllowedHosts(["127.0.0.1"])).patch(
        f"http://127.0.0.1:{port}/x?token=hidden", PAYLOAD, "id"
    )
    assert isinstance(answer, TryAgain)
    assert "hidden" not in answer.reason


def test_many_threads_share_one_webhook(receiver: Receiver) -> None:
    hook = webhook(receiver)
    answers: list[WebhookAnswer] = []
    threads = [
        threading.Thread(
            target=lambda n=n: answers.append(
                hook.patch(receiver.status_url(n), {**PAYLOAD, "style_id": n}, f"msg_{n}")
            )
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    wait_until(lambda: len(answers) == 20)
    assert set(answers) == {Delivered()}
    assert {json.loads(patch.body)["style_id"] for patch in receiver.patches} == set(range(20))
