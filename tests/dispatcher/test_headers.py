"""Headers that pika cannot decode, or encodes otherwise, go on as they came and hold up nothing."""

import struct
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika.spec import BasicProperties

from dispatcher.headers import Properties, Undecoded
from dispatcher.publisher import MOST_RETURNS
from dispatcher.queues import REASON_HEADER, Queues, connect, redrive
from dispatcher.verdict import Postpone, Refuse, Verdict
from tests.dispatcher.support import Amqp, consuming, wait_until


def with_length(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", len(content)) + content


def publish(url: str, queues: Queues, body: bytes, **properties: Any) -> None:
    with connect(url) as connection:
        channel = connection.channel()
        queues.declare(channel)
        channel.confirm_delivery()
        channel.basic_publish("", queues.work, body, Properties(**properties))


def nested(levels: int) -> bytes:
    value = b"V"
    for _ in range(levels):
        value = with_length(b"A", value)
    return value


FOREIGN = {
    "a timestamp in milliseconds": b"T" + struct.pack(">Q", 1_764_000_000_000),
    "a timestamp in nanoseconds": b"T" + struct.pack(">Q", 1_764_000_000_000_000_000),
    "the largest timestamp": b"T" + b"\xff" * 8,
    "a fraction": b"d" + struct.pack(">d", 0.5),
    "not UTF-8": with_length(b"S", b"\xff\xe9"),
    "nested in a table": with_length(b"F", b"\x01a" + b"T" + b"\xff" * 8),
    "nested in an array": with_length(b"A", b"T" + b"\xff" * 8),
    "nested deeply": nested(15_000),
    "small numbers that pika makes larger": with_length(b"A", b"b\x01" * 40_000),
}


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN)
def test_a_header_that_pika_cannot_decode_holds_up_no_queue_and_is_kept(amqp: Amqp, value: bytes) -> None:
    """Every connection that such a message was delivered to broke, for ever."""
    headers = {"before": 1, "foreign": Undecoded(value), "after": {"list": ["two", None]}}
    publish(amqp.url, amqp.queues, b"hostile", headers=headers)
    publish(amqp.url, amqp.queues, b"good")
    with consuming(amqp.url, amqp.queues, lambda _body, _id: Refuse("no")):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 2)
    assert redrive(amqp.url, amqp.queues) == 2
    [again] = [properties for properties, body in amqp.take_all(amqp.queues.work) if body == b"hostile"]
    assert again.headers == headers


def test_a_copy_that_is_put_back_has_the_foreign_header_too(amqp: Amqp) -> None:
    foreign = Undecoded(with_length(b"A", b"b\x01" * 65_000))
    came_often = {"x-delivery-count": MOST_RETURNS}
    publish(amqp.url, amqp.queues, b"hostile", headers={**came_often, "foreign": foreign})

    came = threading.Event()

    def handle(_body: bytes, _message_id: str | None) -> Verdict:
        came.set()
        return Postpone(3600, "the cluster is full")

    with consuming(amqp.url, amqp.queues, handle):
        wait_until(lambda: came.is_set() and amqp.state(amqp.queues.work) == (1, 0))
    taken = amqp.take(amqp.queues.work)
    assert taken
    assert taken[0].headers == {"foreign": foreign}


def test_headers_that_fill_a_frame_make_way_for_the_reason(amqp: Amqp) -> None:
    """With the reason they were larger than frame_max, which broke the connection, for ever."""
    publish(amqp.url, amqp.queues, b"full", headers={"trace": "x" * 130_950}, message_id="m")
    publish(amqp.url, amqp.queues, b"nearly", headers={"trace": "x" * 128_000})
    with consuming(amqp.url, amqp.queues, lambda _body, _id: Refuse("style_id is missing")):
        wait_until(lambda: amqp.depth(amqp.queues.dead) == 2)
    letters = {body: properties for properties, body in amqp.take_all(amqp.queues.dead)}
    full, nearly = letters[b"full"], letters[b"nearly"]
    assert full.message_id == "m"
    assert "trace" not in full.headers
    assert full.headers[REASON_HEADER].startswith(
        "style_id is missing (The headers of the message are left out"
    )
    assert nearly.headers["trace"] == "x" * 128_000
    assert nearly.headers[REASON_HEADER] == "style_id is missing"


SCALARS = st.one_of(
    *(
        st.binary(min_size=size, max_size=size).map(bytes([kind]).__add__)
        for size, kinds in {0: b"V", 1: b"tbB", 2: b"sUu", 4: b"Iif", 5: b"D", 8: b"lLdT"}.items()
        for kind in kinds
    ),
    st.binary(max_size=20).map(lambda data: with_length(b"S", data)),
    st.binary(max_size=20).map(lambda data: with_length(b"x", data)),
)
NAMES = st.binary(min_size=1, max_size=255).map(lambda name: bytes([len(name)]) + name)


def tables(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.dictionaries(NAMES, values, max_size=4).map(
        lambda table: b"".join(name + value for name, value in table.items())
    )


VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: with_length(b"A", b"".join(items)))
        | tables(inner).map(lambda table: with_length(b"F", table))
    ),
    max_leaves=6,
)


@given(
    tables(VALUES),
    st.none() | st.text(max_size=60),
    st.none() | st.text(max_size=60),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_any_headers_are_the_same_bytes_after_decoding_and_encoding(
    table: bytes, content_type: str | None, content_encoding: str | None, timestamp: int | None
) -> None:
    others = {"content_type": content_type, "content_encoding": content_encoding, "timestamp": timestamp}
    empty = b"".join(BasicProperties(headers={}, message_id="m", **others).encode())
    begin = 2 + sum(1 + len(text.encode()) for text in (content_type, content_encoding) if text is not None)
    encoded = empty[:begin] + struct.pack(">I", len(table)) + table + empty[begin + 4 :]
    properties = Properties().decode(encoded)
    assert b"".join(properties.encode()) == encoded
    assert {name: getattr(properties, name) for name in others} == others
    assert properties.message_id == "m"


def test_properties_without_headers_are_as_pika_has_them() -> None:
    encoded = b"".join(BasicProperties(content_type="a/b", message_id="m").encode())
    assert Properties().decode(encoded) == BasicProperties(content_type="a/b", message_id="m")
    assert b"".join(Properties().decode(encoded).encode()) == encoded
