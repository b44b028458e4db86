"""Three message forms become one request; everything else is refused with a sentence that names the field."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from dispatcher.errors import MAX_REASON, RefusedMessageError, Sender
from dispatcher.message import MAX_BODY_BYTES, MAX_REQUEST_BYTES, parse_message
from job_contract.request import MAX_IMAGES, TrainingRequest

PLAIN: dict[str, Any] = {
    "style_id": 42,
    "image_paths": ["s3://bucket/a.jpg", "https://host/b.png", "/data/c.jpg"],
    "webhook_url": "https://backend/api/models/42/status",
    "num_epochs": 200,
    "task_id": "task-1",
}
ENVELOPE: dict[str, Any] = {
    "task_id": "task-1",
    "type": "model_training",
    "webhook_url": PLAIN["webhook_url"],
    "data": {"style_id": 42, "image_paths": PLAIN["image_paths"], "num_epochs": 200},
}
CALLBACK_ENVELOPE: dict[str, Any] = {
    "task_id": "task-1",
    "type": "model_training",
    "callback_url": PLAIN["webhook_url"],
    "data": {"style_id": 42, "images": PLAIN["image_paths"], "parameters": {"epochs": 200}},
}


def parse(message: object, message_id: str | None = None) -> TrainingRequest:
    return parse_message(json.dumps(message).encode(), message_id)


def refusal(message: object) -> RefusedMessageError:
    with pytest.raises(RefusedMessageError) as caught:
        parse(message)
    return caught.value


@pytest.mark.parametrize("message", [PLAIN, ENVELOPE, CALLBACK_ENVELOPE], ids=["plain", "data", "callback"])
def test_the_three_forms_mean_the_same_request(message: dict[str, Any]) -> None:
    assert parse(message) == TrainingRequest(
        style_id=42,
        image_paths=["s3://bucket/a.jpg", "https://host/b.png", "/data/c.jpg"],
        webhook_url="https://backend/api/models/42/status",
        num_epochs=200,
        task_id="task-1",
    )


@pytest.mark.parametrize("path", ["/a\ud800.jpg", "\ud800", "s3://bucket/\udcff.jpg"])
def test_half_a_character_in_a_path_is_refused_by_name(path: str) -> None:
    """JSON may hold it as an escape; the request could not be written, and its message came for ever."""
    refused = refusal({**PLAIN, "image_paths": [path]})
    assert str(refused) == "image_paths entry 1 is empty, too long or holds control characters or half ones"


def test_parameters_of_the_callback_envelope_all_arrive() -> None:
    message = json.loads(json.dumps(CALLBACK_ENVELOPE))
    message["data"]["parameters"] = {"epochs": 7, "learning_rate": 0.0003, "batch_size": 2, "other": "x"}
    request = parse(message)
    assert (request.num_epochs, request.learning_rate, request.batch_size) == (7, 0.0003, 2)


@pytest.mark.parametrize("form", [PLAIN, ENVELOPE, CALLBACK_ENVELOPE], ids=["plain", "data", "callback"])
def test_unknown_fields_are_ignored(form: dict[str, Any]) -> None:
    assert parse({**form, "priority": 9, "retries": [1], "progress_callback": None}) == parse(form)


def test_optional_fields_that_are_null_count_as_absent() -> None:
    nulls = ["num_epochs", "learning_rate", "batch_size", "captions", "trigger_word", "seed", "webhook_url"]
    request = parse({"style_id": 1, "image_paths": ["/a"], "task_id": "t", **dict.fromkeys(nulls)})
    assert request == TrainingRequest(style_id=1, image_paths=["/a"], task_id="t")
    assert request.num_epochs == 100


def test_a_null_beside_the_other_name_of_a_field_does_not_hide_it() -> None:
    """A publisher that writes every key, used or not, once got 100 epochs instead of its 200."""
    message = json.loads(json.dumps(CALLBACK_ENVELOPE))
    message |= {"webhook_url": None, "num_epochs": None, "image_paths": None}
    message["data"] |= {"image_paths": None, "num_epochs": None, "webhook_url": None, "task_id": None}
    assert parse(message) == parse(PLAIN)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"style_id": None}, "style_id"),
        ({"style_id": ""}, "style_id"),
        ({"style_id": "../etc"}, "style_id"),
        ({"style_id": "a" * 65}, "style_id"),
        ({"style_id": "a\n"}, "style_id"),
        ({"style_id": 1.5}, "style_id"),
        ({"style_id": True}, "style_id"),
        ({"style_id": 2**63}, "style_id"),
        ({"style_id": [1]}, "style_id"),
        ({"image_paths": None}, "image_paths"),
        ({"image_paths": []}, "image_paths"),
        ({"image_paths": "a.jpg"}, "image_paths"),
        ({"image_paths": ["/a.jpg"] * 101}, "image_paths"),
        ({"image_paths": ["/a.jpg", 7]}, "image_paths"),
        ({"image_paths": ["/a.jpg", " "]}, "image_paths"),
        ({"image_paths": ["/a\x00.jpg"]}, "image_paths"),
        ({"image_paths": ["ftp://host/a.jpg"]}, "image_paths"),
        ({"image_paths": ["file:///etc/passwd"]}, "image_paths"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"num_epochs": 501}, "num_epochs"),
        ({"num_epochs": "200"}, "num_epochs"),
        ({"num_epochs": 1.5}, "num_epochs"),
        ({"num_epochs": True}, "num_epochs"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "1e-4"}, "learning_rate"),
        ({"batch_size": 0}, "batch_size"),
        ({"captions": ["one"]}, "captions"),
        ({"captions": "one"}, "captions"),
        ({"trigger_word": ""}, "trigger_word"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"task_id": 7}, "task_id"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "t" * 257}, "task_id"),
        ({"webhook_url": "ftp://host/x"}, "webhook_url"),
        ({"webhook_url": "backend/x"}, "webhook_url"),
        ({"webhook_url": 7}, "webhook_url"),
        ({"webhook_url": "https://host/a b"}, "webhook_url"),
        ({"type": "image_upscaling"}, "type"),
        ({"type": ["model_training"]}, "type"),
        ({"data": "x"}, "data"),
        ({"data": [PLAIN]}, "data"),
        ({"parameters": "fast"}, "parameters"),
        ({"parameters": {"epochs": 0}}, "num_epochs"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_a_bad_field_is_refused_by_its_name(change: dict[str, Any], field: str) -> None:
    message = {**PLAIN, **change}
    if "parameters" in change:
        del message["num_epochs"]
    reason = str(refusal(message))
    assert reason.startswith(field)
    assert len(reason) > len(field) + 5


def test_every_fault_is_named_at_once() -> None:
    reason = str(refusal({"style_id": "../x", "image_paths": [], "num_epochs": 501}))
    assert all(field in reason for field in ("style_id", "image_paths", "num_epochs"))


def test_a_refusal_never_quotes_a_presigned_url() -> None:
    reason = str(refusal({**PLAIN, "image_paths": ["ftp://host/a.jpg?X-Amz-Signature=secret"]}))
    assert "secret" not in reason


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"{", b"null", b"7", b'"text"', b"[]", b'{"style_id": NaN}', b"[" * 100_000],
    ids=repr,
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedMessageError, match="JSON") as caught:
        parse_message(body)
    assert caught.value.sender.task_id == hashlib.sha256(body).hexdigest()
    assert caught.value.sender.style_id is None


def test_a_byte_order_mark_is_harmless() -> None:
    assert parse_message(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode()) == parse(PLAIN)


def test_a_request_that_no_annotation_holds_is_refused_before_kubernetes_does() -> None:
    reason = str(refusal({**PLAIN, "image_paths": [f"/{'ü' * 1000}{n}" for n in range(100)]}))
    assert reason.startswith("image_paths")
    assert str(MAX_REQUEST_BYTES) in reason


def test_the_refused_sender_is_known_as_far_as_it_can_be_read() -> None:
    sender = refusal({**ENVELOPE, "data": {"style_id": 42, "images": []}}).sender
    assert (sender.style_id, sender.task_id) == (42, "task-1")
    assert sender.webhook_url == PLAIN["webhook_url"]
    assert refusal({**PLAIN, "style_id": "../x"}).sender.style_id is None
    assert refusal({**PLAIN, "num_epochs": 0, "webhook_url": "no url"}).sender.webhook_url is None


def test_half_a_million_wrong_captions_are_one_fault() -> None:
    """One fault for each took more memory than the container may have, and made a reason of 21 MB."""
    error = refusal({**PLAIN, "captions": [1] * 300_000})
    assert isinstance(error.__cause__, ValidationError)
    assert error.__cause__.error_count() <= MAX_IMAGES + 1
    assert str(error).startswith("captions should have at most 100 items")


def test_a_body_larger_than_any_request_is_refused_unread() -> None:
    body = json.dumps({**PLAIN, "padding": "x" * MAX_BODY_BYTES}).encode()
    with pytest.raises(
        RefusedMessageError, match=f"the body is {len(body)} bytes.*{MAX_BODY_BYTES}"
    ) as caught:
        parse_message(body)
    assert caught.value.sender.task_id == hashlib.sha256(body).hexdigest()


def test_a_reason_is_never_longer_than_a_header_a_patch_and_a_log_can_bear() -> None:
    assert str(RefusedMessageError("short.", Sender())) == "short."
    long = str(RefusedMessageError("x" * 100_000, Sender()))
    assert (len(long), long[-2:]) == (MAX_REASON, "x…")


@pytest.mark.parametrize("task_id", ["t" * 257, "t" * 1_000_000 + "\ud800", "", 7, ["t"]])
def test_a_task_id_that_is_none_is_told_to_nobody(task_id: object) -> None:
    assert refusal({**PLAIN, "task_id": task_id}).sender == Sender(42, None, PLAIN["webhook_url"])


def test_identity_is_task_id_then_message_id_then_the_body() -> None:
    bare = {name: value for name, value in PLAIN.items() if name != "task_id"}
    body = json.dumps(bare).encode()
    assert parse(PLAIN, "amqp-7").task_id == "task-1"
    assert parse(bare, "amqp-7").task_id == "amqp-7"
    assert parse(bare).task_id == hashlib.sha256(body).hexdigest()
    assert parse(bare, "").task_id == hashlib.sha256(body).hexdigest()
    assert parse_message(body).task_id != parse_message(body + b" ").task_id


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
NAMES = [
    *TrainingRequest.model_fields,
    "data",
    "parameters",
    "images",
    "callback_url",
    "type",
    "epochs",
]
ODD_MESSAGES = st.dictionaries(
    st.sampled_from(NAMES), JSON_VALUES | st.dictionaries(st.sampled_from(NAMES), JSON_VALUES)
)


@given(st.binary() | ODD_MESSAGES.map(lambda message: json.dumps(message).encode()), st.none() | st.text())
def test_any_bytes_give_a_request_or_a_refusal_and_nothing_else(body: bytes, message_id: str | None) -> None:
    try:
        request = parse_message(body, message_id)
    except RefusedMessageError as error:
        assert str(error)  # noqa: PT017 - either outcome is right, this one with a sentence
    else:
        assert request.task_id


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    paths = draw(st.lists(TEXTS.map(lambda text: "/data/" + text), min_size=1, max_size=5))
    optional: dict[str, Any] = {
        "webhook_url": draw(st.none() | st.just("https://backend/status?x=1")),
        "num_epochs": draw(st.none() | st.integers(1, 500)),
        "learning_rate": draw(st.none() | st.floats(1e-9, 1)),
        "batch_size": draw(st.none() | st.integers(1, 100)),
        "captions": draw(st.none() | st.lists(TEXTS, min_size=len(paths), max_size=len(paths))),
        "trigger_word": draw(st.none() | TEXTS),
        "seed": draw(st.none() | st.integers(0, 2**32 - 1)),
        "task_id": draw(st.none() | TEXTS),
    }
    style = draw(st.integers(-(2**62), 2**62) | st.from_regex(r"\A[A-Za-z0-9_-]{1,64}\Z"))
    present = {name: value for name, value in optional.items() if value is not None}
    return {"style_id": style, "image_paths": paths, **present}


@given(requests(), st.booleans())
def test_a_valid_request_survives_every_wrapping(message: dict[str, Any], ascii_only: bool) -> None:
    def parsed(form: dict[str, Any]) -> TrainingRequest:
        return parse_message(json.dumps(form, ensure_ascii=ascii_only).encode(), "id")

    wanted = TrainingRequest.model_validate({"task_id": "id", **message})
    head = {name: message[name] for name in ("task_id",) if name in message}
    inner = {name: value for name, value in message.items() if name not in ("task_id", "webhook_url")}
    url = message.get("webhook_url")
    renamed = dict(inner)
    renamed["images"] = renamed.pop("image_paths")
    theirs = {"num_epochs": "epochs", "learning_rate": "learning_rate", "batch_size": "batch_size"}
    renamed["parameters"] = {theirs[name]: renamed.pop(name) for name in theirs if name in renamed}
    envelope = {"type": "model_training", **head}
    assert parsed(message) == wanted
    assert parsed({**envelope, "webhook_url": url, "data": inner}) == wanted
    assert parsed({**envelope, "callback_url": url, "data": renamed}) == wanted
    assert TrainingRequest.model_validate_json(wanted.to_json()) == wanted
