"""Work in flight: booked when a worker is chosen, so that the next decision knows of it.

Load reports come several times a second; a burst of requests is decided in a millisecond. The
ledger closes that gap. A booking's prefill is done at its first token, all of it at its end. One
that makes no progress for `silence_s` is dropped: by silence, never by age, as long answers live
long.

Words may come twice, late or in the wrong order, from gateways and from other routers: a booking
that comes after its first token counts no prefill, one that comes after its end counts nothing,
and words about an earlier attempt of a request do not touch a later one on the same worker.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, auto

from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress

ENDED_KEPT_S = 5.0
"""How long the end of an attempt is remembered, so that a late word does not bring it back."""

Key = tuple[RequestId, WorkerId]


@dataclass
class InFlight:
    """What one worker owes: the sums of its bookings."""

    requests: int = 0
    prefill_tokens: int = 0
    decode_blocks: int = 0


class _Stage(Enum):
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


@dataclass
class _Entry:
    """An attempt that has been booked or heard of. What it adds to the sums is in the last
    three fields."""

    attempt: int
    """The least attempt that words about this entry bear; 0: whichever comes first."""
    heard_s: float
    stage: _Stage = _Stage.PREFILL
    booked: bool = False
    prefill_tokens: int = 0
    decode_blocks: int = 0


NOTHING = InFlight()


class Ledger:
    """Bookings of this router and of its replicas, by request and worker. Pure."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._entries: dict[Key, _Entry] = {}
        self._sums: dict[WorkerId, InFlight] = {}
        self._bookings = 0
        self._changed: set[WorkerId] = set()

    def __len__(self) -> int:
        """How many bookings have not ended."""
        return self._bookings

    def of(self, worker: WorkerId) -> InFlight:
        """What the worker owes; not to be changed by the caller."""
        return self._sums.get(worker, NOTHING)

    def take_changed(self) -> Collection[WorkerId]:
        """Workers whose sums may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def book(self, booking: Booking, now_s: float) -> None:
        """We have given a worker a request: a new attempt, whatever was said of earlier ones."""
        key = (booking.request, booking.worker)
        before = self._entries.pop(key, None)
        attempt = 0
        if before is not None:
            self._release(key, before)
            attempt = before.attempt + 1
        entry = self._entries[key] = _Entry(attempt, now_s)
        self._count(booking, entry)

    def book_elsewhere(self, booking: Booking, now_s: float) -> None:
        """Another router has given a worker a request, which may have come far already."""
        key = (booking.request, booking.worker)
        entry = self._entries.setdefault(key, _Entry(0, now_s))
        if not entry.booked and entry.stage is not _Stage.ENDED:
            self._count(booking, entry)

    def hear(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far an attempt has come."""
        key = (progress.request, progress.worker)
        entry = self._entries.setdefault(key, _Entry(0, now_s))
        if progress.attempt < entry.attempt:
            return
        if progress.attempt > entry.attempt and entry.stage is _Stage.ENDED:
            entry = self._entries[key] = _Entry(progress.attempt, now_s)
        entry.attempt, entry.heard_s = progress.attempt, now_s
        if progress.phase is Phase.ENDED:
            self._release(key, entry)
            entry.stage = _Stage.ENDED
        elif progress.phase is not Phase.DISPATCHED and entry.stage is _Stage.PREFILL:
            self._free_prefill(key, entry)
            entry.stage = _Stage.DECODE

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone, and what it owed with it."""
        for key in [key for key in self._entries if key[1] == worker]:
            self._release(key, self._entries.pop(key))
        self._sums.pop(worker, None)
        self._changed.add(worker)

    def expire(self, now_s: float) -> int:
        """Drop what has been silent for too long; returns how many bookings that were."""
        before = self._bookings
        for key, entry in list(self._entries.items()):
            kept_s = ENDED_KEPT_S if entry.stage is _Stage.ENDED else self._silence_s
            if entry.heard_s < now_s - kept_s:
                self._release(key, self._entries.pop(key))
        return before - self._bookings

    def _count(self, booking: Booking, entry: _Entry) -> None:
        entry.booked = True
        if entry.stage is _Stage.PREFILL:
            entry.prefill_tokens = booking.new_prefill_tokens
        entry.decode_blocks = booking.decode_blocks
        sums = self._sums.setdefault(booking.worker, InFlight())
        sums.requests += 1
        sums.prefill_tokens += entry.prefill_tokens
        sums.decode_blocks += entry.decode_blocks
        self._bookings += 1
        self._changed.add(booking.worker)

    def _free_prefill(self, key: Key, entry: _Entry) -> None:
        if entry.booked:
            self._sums[key[1]].prefill_tokens -= entry.prefill_tokens
            entry.prefill_tokens = 0
            self._changed.add(key[1])

    def _release(self, key: Key, entry: _Entry) -> None:
        """Take what the entry adds out of the sums; an entry adds something once."""
        if entry.booked:
            self._free_prefill(key, entry)
            sums = self._sums[key[1]]
            sums.requests -= 1
            sums.decode_blocks -= entry.decode_blocks
            entry.booked = False
            self._bookings -= 1
