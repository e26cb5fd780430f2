"""Messages to bytes and back: one envelope around every word, msgpack on the wire.

The envelope says who speaks (producer, incarnation), the how-manieth word it is (sequence) and
when; trace context travels in headers beside it. Readers ignore fields they do not know, refuse an
unknown major version, and count what they cannot read instead of falling over it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

from proto.ids import Incarnation

SCHEMA_MAJOR = 1

T = TypeVar("T")


class Unreadable(Exception):
    """These bytes are not a message we know; says why. Count it and go on."""


class Envelope(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """One word as sent. Fields may be appended, never changed; a change of meaning is a new
    major `schema`, which is why it comes first."""

    schema: int
    producer: str
    incarnation: int
    sequence: int
    time_s: float
    body: T


class _Head(msgspec.Struct, array_like=True):
    schema: int


class Producer:
    """Seals the words of one stream and numbers them 1, 2, 3 ... within one incarnation."""

    def __init__(self, name: str, incarnation: Incarnation, clock: Callable[[], float]) -> None:
        self.name = name
        self.incarnation = incarnation
        self.sequence = 0
        self._clock = clock
        self._encoder = msgspec.msgpack.Encoder()

    def seal(self, body: msgspec.Struct) -> bytes:
        """The next message of the stream."""
        self.sequence += 1
        return self._encoder.encode(
            Envelope(SCHEMA_MAJOR, self.name, self.incarnation, self.sequence, self._clock(), body)
        )


class Reader(Generic[T]):
    """Opens words of one type; made once, used for every message."""

    def __init__(self, body: Any) -> None:
        """`body` is the type, or union of types, that is expected."""
        self._decoder: msgspec.msgpack.Decoder[Envelope[T]] = msgspec.msgpack.Decoder(
            Envelope[body]
        )
        self._head = msgspec.msgpack.Decoder(_Head)

    def open(self, data: bytes) -> Envelope[T]:
        """Raises `Unreadable`."""
        try:
            envelope = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unreadable(self._why(data, error)) from error
        if envelope.schema != SCHEMA_MAJOR:
            raise Unreadable(f"schema {envelope.schema}, this build reads {SCHEMA_MAJOR}")
        return envelope

    def _why(self, data: bytes, error: Exception) -> str:
        """A message of another major version may fail anywhere: name the version, not the field."""
        try:
            schema = self._head.decode(data).schema
        except (msgspec.DecodeError, UnicodeDecodeError):
            return f"not an envelope: {error}"
        if schema != SCHEMA_MAJOR:
            return f"schema {schema}, this build reads {SCHEMA_MAJOR}"
        return str(error)
