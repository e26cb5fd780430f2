"""Envelopes: numbered, versioned, and readable by older and newer builds."""

from __future__ import annotations

import msgspec
import pytest

from proto.codec import SCHEMA_MAJOR, Producer, Reader, Unreadable
from proto.ids import Incarnation, WorkerId
from proto.kv import KvBatch, Tier
from proto.route import Chosen, Rejected, RouteReply


def producer() -> Producer:
    return Producer("w1", Incarnation(7), lambda: 12.5)


def test_a_sealed_word_opens_as_it_was() -> None:
    batch = KvBatch(WorkerId("w1"), b"12345678", b"", True, Tier.HOST)
    envelope = Reader[KvBatch](KvBatch).open(producer().seal(batch))
    assert envelope.body == batch
    assert (envelope.producer, envelope.incarnation, envelope.time_s) == ("w1", 7, 12.5)


def test_a_stream_is_numbered_from_one_without_holes() -> None:
    source, reader = producer(), Reader[KvBatch](KvBatch)
    sealed = [source.seal(KvBatch(WorkerId("w1"))) for _ in range(3)]
    assert [reader.open(data).sequence for data in sealed] == [1, 2, 3]


def test_unions_are_told_apart() -> None:
    reader = Reader[RouteReply](RouteReply)
    rejected = Rejected("all_busy", "no room")
    chosen = Chosen(WorkerId("w"), 1, "http://h", "r", "kv", 3, 16)
    for word in (rejected, chosen):
        assert reader.open(producer().seal(word)).body == word


def test_fields_of_a_newer_build_are_ignored() -> None:
    data = msgspec.msgpack.encode(
        [SCHEMA_MAJOR, "w1", 7, 1, 0.0, ["w1", b"", b"", False, 0, "new"], "new"]
    )
    assert Reader[KvBatch](KvBatch).open(data).body == KvBatch(WorkerId("w1"))


def test_an_unknown_major_version_is_refused_by_name() -> None:
    for body in (["w1"], {"anything": "else"}):
        data = msgspec.msgpack.encode([SCHEMA_MAJOR + 1, "w1", 7, 1, 0.0, body])
        with pytest.raises(Unreadable, match=f"schema {SCHEMA_MAJOR + 1}"):
            Reader[KvBatch](KvBatch).open(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\xff" * 40,
        msgspec.msgpack.encode({"a": 1}),
        msgspec.msgpack.encode([1, 2]),
        msgspec.msgpack.encode([SCHEMA_MAJOR, "w", 1, 1, 0.0, [3]]),
        b"\x96\x01\xa2\xff\xff\x01\x01\xcb" + b"\0" * 8 + b"\x91\xa1w",
    ],
)
def test_garbage_is_unreadable_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Unreadable):
        Reader[KvBatch](KvBatch).open(data)
