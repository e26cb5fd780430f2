"""Work in flight: booked when a worker is chosen, so that the next decision knows of it.

Load reports come several times a second; a burst of requests is decided in a millisecond. The
ledger closes that gap. A booking's prefill is done at its first token, all of it at its end. One
that makes no progress for `silence_s` is dropped: by silence, never by age, as long answers live
long. Messages may come twice, late or in the wrong order.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from proto.ids import RequestId, WorkerId
from proto.progress import Booking

ENDED_KEPT = 10_000
"""Ended bookings remembered, so that a late word about one does not bring it back."""

Key = tuple[RequestId, WorkerId]


@dataclass
class InFlight:
    """What one worker owes: the sums of its bookings."""

    requests: int = 0
    prefill_tokens: int = 0
    decode_blocks: int = 0


@dataclass
class _Entry:
    prefill_tokens: int
    decode_blocks: int
    heard_s: float


NOTHING = InFlight()


class Ledger:
    """Bookings of this router and of its replicas, by request and worker. Pure."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._entries: dict[Key, _Entry] = {}
        self._sums: dict[WorkerId, InFlight] = {}
        self._ended: OrderedDict[Key, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, worker: WorkerId) -> InFlight:
        """What the worker owes; not to be changed by the caller."""
        return self._sums.get(worker, NOTHING)

    def book(self, booking: Booking, now_s: float) -> None:
        """A worker was given a request, by us or by another router."""
        key = (booking.request, booking.worker)
        if key in self._ended or key in self._entries:
            return
        self._entries[key] = _Entry(booking.new_prefill_tokens, booking.decode_blocks, now_s)
        sums = self._sums.setdefault(booking.worker, InFlight())
        sums.requests += 1
        sums.prefill_tokens += booking.new_prefill_tokens
        sums.decode_blocks += booking.decode_blocks

    def first_token(self, request: RequestId, worker: WorkerId, now_s: float) -> None:
        """Prefill is done; decode goes on."""
        entry = self._entries.get((request, worker))
        if entry is not None:
            self._sums[worker].prefill_tokens -= entry.prefill_tokens
            entry.prefill_tokens = 0
            entry.heard_s = now_s

    def alive(self, request: RequestId, worker: WorkerId, now_s: float) -> None:
        """Somebody still carries it."""
        entry = self._entries.get((request, worker))
        if entry is not None:
            entry.heard_s = now_s

    def end(self, request: RequestId, worker: WorkerId) -> None:
        """The worker owes nothing more for it."""
        key = (request, worker)
        self._ended[key] = None
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)
        self._drop(key)

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone, and what it owed with it."""
        for key in [key for key in self._entries if key[1] == worker]:
            self._drop(key)
        self._sums.pop(worker, None)

    def expire(self, now_s: float) -> int:
        """Drop what has been silent for too long; returns how many."""
        limit_s = now_s - self._silence_s
        silent = [key for key, entry in self._entries.items() if entry.heard_s < limit_s]
        for key in silent:
            self._drop(key)
        return len(silent)

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            sums = self._sums[key[1]]
            sums.requests -= 1
            sums.prefill_tokens -= entry.prefill_tokens
            sums.decode_blocks -= entry.decode_blocks
