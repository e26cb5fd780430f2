"""Durable streams of the bus in memory: what is kept, and who has read how far. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from proto.wire.patterns import matches
from proto.wire.ports import Message, StreamSpec


class Kept(NamedTuple):
    """A stored message."""

    sequence: int
    stored_s: float
    message: Message
    message_id: str


class KeptStream:
    """Messages in the order of their sequence numbers, within the limits of its spec."""

    def __init__(self, spec: StreamSpec, ack_wait_s: float) -> None:
        self.spec = spec
        self._ack_wait_s = ack_wait_s
        self._kept: dict[int, Kept] = {}
        self._sequence_of: dict[str, int] = {}
        self._last = 0
        self._bytes = 0
        self._durables: dict[str, Consumer] = {}

    def wants(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.spec.subjects)

    def store(self, message: Message, message_id: str, now_s: float) -> int:
        """Keep a message, once for each id that is not empty; returns its sequence number."""
        if message_id in self._sequence_of:
            return self._sequence_of[message_id]
        self._last += 1
        self._kept[self._last] = Kept(self._last, now_s, message, message_id)
        self._bytes += len(message.data)
        if message_id:
            self._sequence_of[message_id] = self._last
        self.trim(now_s)
        return self._last

    def trim(self, now_s: float) -> None:
        """Drop the oldest until both limits are kept."""
        while self._kept:
            oldest = self._kept[next(iter(self._kept))]
            too_old = oldest.stored_s + self.spec.max_age_s <= now_s
            if not too_old and self._bytes <= self.spec.max_bytes:
                return
            del self._kept[oldest.sequence]
            self._bytes -= len(oldest.message.data)
            self._sequence_of.pop(oldest.message_id, None)

    def at(self, sequence: int) -> Kept | None:
        return self._kept.get(sequence)

    @property
    def first(self) -> int:
        """The lowest sequence number kept, or the next to come."""
        return next(iter(self._kept), self._last + 1)

    def consumer(self, durable: str | None) -> Consumer:
        """The one of that name, or a fresh one from the first message kept."""
        if durable is None:
            return Consumer(self, self._ack_wait_s)
        if durable not in self._durables:
            self._durables[durable] = Consumer(self, self._ack_wait_s)
        return self._durables[durable]


class Consumer:
    """How far a stream was read. Readers of one consumer share its messages."""

    def __init__(self, stream: KeptStream, ack_wait_s: float) -> None:
        self._stream = stream
        self._ack_wait_s = ack_wait_s
        self._next = 1
        self._due_s: dict[int, float] = {}  # of what is not acknowledged; the earliest first

    def take(self, limit: int, now_s: float) -> Kept | None:
        """The next message to hand out, or again one that was not acknowledged in time; at most
        `limit` wait for an acknowledgement at once."""
        self._stream.trim(now_s)
        while self.due_s <= now_s:
            sequence = next(iter(self._due_s))
            del self._due_s[sequence]
            if kept := self._stream.at(sequence):
                return self._handed_out(kept, now_s)
        self._next = max(self._next, self._stream.first)
        kept = self._stream.at(self._next)
        if kept is None or len(self._due_s) >= limit:
            return None
        self._next += 1
        return self._handed_out(kept, now_s)

    def acknowledge(self, sequence: int) -> None:
        self._due_s.pop(sequence, None)

    def give_back(self, sequences: Iterable[int]) -> None:
        """Hand these out again at once, if they were not acknowledged."""
        returned = {each: -math.inf for each in sequences if each in self._due_s}
        self._due_s = {**returned, **{s: d for s, d in self._due_s.items() if s not in returned}}

    @property
    def due_s(self) -> float:
        """When the first unacknowledged message comes again."""
        return next(iter(self._due_s.values()), math.inf)

    def _handed_out(self, kept: Kept, now_s: float) -> Kept:
        self._due_s[kept.sequence] = now_s + self._ack_wait_s
        return kept
