"""A message's headers go on byte for byte, whatever its publisher has put there.

pika raises for some that RabbitMQ takes (a timestamp in milliseconds, NaN, tables within 500 tables), and
then nothing behind that message is ever delivered; of others it makes something else (1.5 becomes 1).
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, Self

from pika import data
from pika.exceptions import InvalidFieldTypeException
from pika.spec import BasicProperties

_SIZES: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"sUu", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    ord("D"): 5,
    ord("V"): 0,
}
"""Bytes after the type; long strings, byte arrays, arrays and tables begin with their length instead."""
_WITH_LENGTH: Final = frozenset(b"SxAF")


class Undecoded(bytes):
    """A header's value as AMQP encodes it, its type first: pika would not give it back as it came."""


class Properties(BasicProperties):  # type: ignore[misc]  # pika has no types
    """pika's own properties, but for headers that it cannot decode and encode again: those are Undecoded."""

    def decode(self, encoded: bytes, offset: int = 0) -> Self:
        start, end = _table(encoded, offset)
        super().decode(encoded[:start] + bytes(min(end - start, 4)) + encoded[end:], offset)
        if end > start:
            self.headers = dict(_entries(encoded[start + 4 : end]))
        return self

    def encode(self) -> list[bytes]:
        if self.headers is None:
            return list(super().encode())
        encoded = b"".join(BasicProperties(**(vars(self) | {"headers": {}})).encode())
        start, end = _table(encoded, 0)
        return [encoded[:start], _encode(self.headers), encoded[end:]]


def _table(encoded: bytes, offset: int) -> tuple[int, int]:
    """Return where the headers begin and end in encoded properties; at the same place if there are none."""
    flags = int.from_bytes(encoded[offset : offset + 2])
    start = offset + 2
    for flag in (BasicProperties.FLAG_CONTENT_TYPE, BasicProperties.FLAG_CONTENT_ENCODING):
        if flags & flag:
            start += 1 + encoded[start]
    if not flags & BasicProperties.FLAG_HEADERS:
        return start, start
    return start, start + 4 + int.from_bytes(encoded[start : start + 4])


def _entries(table: bytes) -> Iterator[tuple[str | bytes, Any]]:
    offset = 0
    while offset < len(table):
        name, start = data.decode_short_string(table, offset)
        offset = start + _size(table, start)
        yield name, _value(table[start:offset])


def _size(table: bytes, offset: int) -> int:
    kind = table[offset]
    if kind in _WITH_LENGTH:
        return 5 + int.from_bytes(table[offset + 1 : offset + 5])
    if kind not in _SIZES:
        raise InvalidFieldTypeException(kind)
    return 1 + _SIZES[kind]


def _value(encoded: bytes) -> Any:
    again: list[bytes] = []
    try:
        value, _ = data.decode_value(encoded, 0)
        data.encode_value(again, value)
    except Exception:  # noqa: BLE001 - whatever it cannot do with it, the value is kept as it came
        return Undecoded(encoded)
    return value if b"".join(again) == encoded else Undecoded(encoded)


def _encode(headers: dict[str | bytes, Any]) -> bytes:
    pieces: list[bytes] = []
    for name, value in headers.items():
        data.encode_short_string(pieces, name)
        if isinstance(value, Undecoded):
            pieces.append(value)
        else:
            data.encode_value(pieces, value)
    table = b"".join(pieces)
    return struct.pack(">I", len(table)) + table
