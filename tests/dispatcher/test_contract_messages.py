"""What crosses between trainer and dispatcher survives the crossing: outcome, progress, redaction."""

import json
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_contract.outcome import (
    TERMINATION_MESSAGE_MAX_BYTES,
    FailureCode,
    TrainingFailure,
    TrainingResult,
    decode,
    encode,
)
from job_contract.progress import Progress, format_progress, parse_progress
from job_contract.redaction import redact

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
RESULTS = st.builds(
    TrainingResult,
    model_path=TEXTS,
    s3_uri=st.none() | TEXTS,
    loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    epochs=st.integers(0, 500),
    seconds=st.floats(0, 1e6),
)
FAILURES = st.builds(TrainingFailure, failure_code=st.sampled_from(FailureCode), failure_reason=TEXTS)


@given(RESULTS | FAILURES)
def test_a_termination_message_means_the_same_after_the_crossing(
    message: TrainingResult | TrainingFailure,
) -> None:
    assert decode(encode(message).decode()) == message


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=100), st.integers(100, 300))
def test_a_reason_too_long_is_cut_and_not_lost(text: str, times: int) -> None:
    message = TrainingFailure(failure_code=FailureCode.TRAINING_ERROR, failure_reason=text * times)
    encoded = encode(message)
    decoded = decode(encoded.decode())
    assert len(encoded) <= TERMINATION_MESSAGE_MAX_BYTES
    assert isinstance(decoded, TrainingFailure)
    assert decoded.failure_code is FailureCode.TRAINING_ERROR
    assert (text * times).startswith(decoded.failure_reason.removesuffix("…"))
    if decoded.failure_reason != message.failure_reason:
        assert len(encoded) > TERMINATION_MESSAGE_MAX_BYTES - 20


def test_notes_go_before_the_result_does() -> None:
    result = TrainingResult(model_path="/m", epochs=1, seconds=1.0, notes=["x" * 5000])
    assert decode(encode(result).decode()) == result.model_copy(update={"notes": []})


@pytest.mark.parametrize("text", [None, "", "null", "[]", "7", "{", "{}", '{"model_path": "/m"}', "Segfault"])
def test_a_message_that_is_not_ours_is_none(text: str | None) -> None:
    assert decode(text) is None


def test_unknown_failure_codes_are_not_ours() -> None:
    assert decode('{"failure_code": "BORED", "failure_reason": "x"}') is None


@given(st.text())
def test_decoding_anything_never_raises(text: str) -> None:
    decode(text)


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.integers(0, 10**7), st.text())
def test_progress_survives_the_log(epoch: int, total: int, seconds: int, details: str) -> None:
    details = " ".join(details.split()).replace("epoch", "").replace("ETA", "")
    details = " ".join("".join(c for c in details if c.isprintable()).split())
    progress = Progress(epoch, total, seconds)
    assert parse_progress("noise\n" + format_progress(progress, details) + "\nmore noise") == progress


def test_the_last_progress_counts() -> None:
    first, last = Progress(1, 3, 20), Progress(2, 3, 10)
    log = "\n".join(format_progress(progress, "loss 0.1") for progress in (first, last))
    assert parse_progress(log) == last
    assert parse_progress("starting\nno epochs here") is None
    assert parse_progress("") is None


@pytest.mark.parametrize(
    ("current", "total", "percent"), [(1, 3, 33.3), (3, 3, 100.0), (0, 3, 0.0), (0, 0, 0.0)]
)
def test_percent_is_of_the_epochs(current: int, total: int, percent: float) -> None:
    assert Progress(current, total, 0).percent == percent


@given(st.text())
def test_reading_progress_from_any_log_never_raises(log: str) -> None:
    parse_progress(log)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=hidden&x=1", "hidden"),
        ("GET /a.jpg?token=hidden failed", "hidden"),
        ("amqp://user:hidden@broker:5672/%2F", "hidden"),
        ("https://hidden@host/x", "hidden"),
        ("Authorization: Bearer hidden.token-1", "hidden"),
        ("authorization: basic aGlkZGVu", "aGlkZGVu"),
        ("'https://host/a?sig=hidden' and \"http://host/b?sig=hidden\"", "hidden"),
        ("S3://bucket/key?versionId=hidden", "hidden"),
        ("https://host/it's.jpg?X-Amz-Signature=hidden failed", "hidden"),
        ("'https://host/a.jpg?name=it's&sig=hidden'", "hidden"),
        ("https://host/#/a.jpg?sig=hidden", "hidden"),
    ],
)
def test_secrets_are_taken_out_of_a_text(text: str, secret: str) -> None:
    assert secret not in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "Why? Because.",
        "https://host/a.jpg is truncated",
        "epoch 1/2  loss 0.1  ETA 0:00:01",
        "mail someone@example.com",
        json.dumps({"failure_code": "INVALID_IMAGES"}),
        "is it '/data/a.jpg'? Yes, or \"/data/b.jpg\"?",
    ],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


HOSTILE = ["a-", "a.", "a://", "/", "a?", "@a://", "Bearer ", " ", "?/", "a-://", " /", "'a://", "Basic \t"]


def test_no_text_takes_more_than_its_length_to_redact() -> None:
    """A task_id of 80,000 characters once stopped every thread for minutes; these would take days."""
    program = (
        "import sys; from job_contract.redaction import redact\n"
        "for unit in sys.argv[1:]: redact(unit * 250_000); redact('Bearer' + unit * 250_000)"
    )
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", program, *HOSTILE], env=path, check=True, timeout=100)


USER = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#@]*@", re.IGNORECASE)
QUERY = re.compile(r"(?P<url>(?:\b[a-z][a-z0-9+.-]*://|(?<![\w.])/)[^\s?<>]*)\?[^\s<>]+", re.IGNORECASE)
BEARER = re.compile(r"(?P<scheme>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]+", re.IGNORECASE)


@given(st.lists(st.sampled_from([*HOSTILE, "a", "x=1", "@", ":", "<", ".", "https://h", "é", "'s"])))
def test_redacting_is_what_three_expressions_say_that_take_the_square_of_the_length(parts: list[str]) -> None:
    text = "".join(parts)
    said = QUERY.sub(r"\g<url>?***", USER.sub(r"\g<scheme>***@", text))
    assert redact(text) == BEARER.sub(r"\g<scheme>***", said)


def test_the_quotes_around_a_url_stay() -> None:
    text = json.dumps(
        [{"url": "https://host/a?sig=x", "next": "/b?c=d"}, "why?because"], separators=(",", ":")
    )
    assert json.loads(redact(text)) == [{"url": "https://host/a?***", "next": "/b?***"}, "why?because"]


@given(st.text())
def test_redacting_twice_is_redacting_once(text: str) -> None:
    assert redact(redact(text)) == redact(text)
