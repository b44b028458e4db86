"""The backend stand-in checks, records and misbehaves as it is told."""

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.parts.receiver import Answer, Receiver


def patch(receiver: Receiver, status: str, token: str = "backend-token", **headers: str) -> Any:
    return requests.patch(
        receiver.status_url(42),
        json={"training_status": status},
        headers={"Authorization": f"Bearer {token}", **headers},
        timeout=2,
        allow_redirects=False,
    )


def test_wrong_token_is_401_and_does_not_use_up_the_script(receiver: Receiver) -> None:
    receiver.script.append(Answer(503, {"Retry-After": "1"}))
    assert patch(receiver, "processing", token="another").status_code == 401
    answer = patch(receiver, "processing")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert patch(receiver, "processing").status_code == 200
    assert [item.answered for item in receiver.patches] == [401, 503, 200]


def test_other_method_is_405(receiver: Receiver) -> None:
    answer = requests.get(receiver.url, headers={"Authorization": "Bearer backend-token"}, timeout=2)
    assert answer.status_code == 405


def test_statuses_are_what_was_accepted_each_event_once(receiver: Receiver) -> None:
    receiver.script.extend([Answer(), Answer(500)])
    patch(receiver, "processing", **{"webhook-id": "1"})
    patch(receiver, "completed", **{"webhook-id": "2"})
    patch(receiver, "completed", **{"webhook-id": "2"})
    patch(receiver, "completed", **{"webhook-id": "2"})
    assert receiver.statuses("/api/models/42/status") == ["processing", "completed"]


def test_function_answers_and_redirect_is_given_as_it_is(receiver: Receiver) -> None:
    receiver.answer = lambda item: Answer(302, {"Location": "/elsewhere"}) if item.status == "x" else Answer()
    assert patch(receiver, "x").status_code == 302
    assert patch(receiver, "y").status_code == 200


def test_reset_hang_and_stop_break_the_connection(receiver: Receiver) -> None:
    receiver.script.extend([Answer(reset=True), Answer(hang=True)])
    with pytest.raises(requests.ConnectionError):
        patch(receiver, "processing")
    with pytest.raises(requests.Timeout):
        requests.patch(
            receiver.url, headers={"Authorization": "Bearer backend-token"}, data=b"not JSON", timeout=0.2
        )
    assert receiver.patches[-1].json is None
    receiver.stop()
    with pytest.raises(requests.ConnectionError):
        patch(receiver, "processing")
    receiver.start()
    assert patch(receiver, "processing").status_code == 200
    assert len(receiver.patches) == 3


def test_waiter_wakes_up_and_a_timeout_lists_what_came(receiver: Receiver) -> None:
    later = threading.Timer(0.1, patch, (receiver, "completed"))
    later.start()
    [item] = receiver.wait_for(lambda patches: any(item.status == "completed" for item in patches))
    assert item.headers["authorization"] == "Bearer backend-token"
    later.join()
    with pytest.raises(TimeoutError, match="completed"):
        receiver.wait_for(lambda patches: len(patches) == 2, timeout=0.1)


def test_file_has_a_line_for_each_patch_with_the_right_token(tmp_path: Path) -> None:
    file = tmp_path / "statuses.jsonl"
    with Receiver("backend-token", file=file) as receiver:
        patch(receiver, "processing", token="another")
        patch(receiver, "completed")
    [line] = [json.loads(line) for line in file.read_text().splitlines()]
    assert (line["path"], line["body"]) == ("/api/models/42/status", {"training_status": "completed"})


def test_malformed_request_ends_only_its_own_connection(receiver: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", int(receiver.url.rpartition(":")[2]))) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        assert connection.recv(100) == b""
    assert patch(receiver, "completed").status_code == 200
