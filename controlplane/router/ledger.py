"""Work in flight: booked when a worker is chosen, so that the next decision knows of it.

Load reports come several times a second; a burst of requests is decided in a millisecond. The
ledger closes that gap. A booking's prefill is done at its first token, all of it at its end. Of an
answer that is not streamed nobody sees the first token: its prefill is done when its worker shows
that it has none left. A booking that makes no progress for `silence_s` is dropped: by silence,
never by age, as long answers live long.

Words may come twice, late or in the wrong order, from gateways, from other routers and from this
one: a booking counts once, without prefill if it comes after its first token, and not at all if it
comes after its end, or after it was withdrawn. Every word bears the number of its attempt; one
about an earlier attempt of a request does not touch a later one on the same worker.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from proto.ids import RequestId, WorkerId
from proto.progress import Booking, Phase, Progress, Withdrawn

LATELY_S = 10.0
ENDED_KEPT_S = 5.0
"""How long the end of an attempt is remembered, so that a late word does not bring it back."""
WITHDRAWN_MAX = 16_384
"""Attempts that nobody wants which are remembered, at most, and for no longer than a booking that
nobody speaks of: a router that was away books what it was asked long ago."""


@dataclass
class InFlight:
    """What one worker owes: the sums of its bookings."""

    requests: int = 0
    prefill_tokens: int = 0
    decode_blocks: int = 0
    lately_tokens: float = 0.0
    """Prompt tokens booked, each counting e times less for every `LATELY_S` since."""
    booked_s: float = -math.inf
    """When `lately_tokens` was right."""

    def prefill_rate(self, now_s: float) -> float:
        """Prompt tokens a second, of late."""
        return self.lately_tokens * math.exp((self.booked_s - now_s) / LATELY_S) / LATELY_S


class _Stage(Enum):
    PREFILL = auto()
    DECODE = auto()
    ENDED = auto()


@dataclass
class _Entry:
    """An attempt that has been booked or heard of. What it adds to the sums is in the last
    three fields."""

    attempt: int
    heard_s: float
    stage: _Stage = _Stage.PREFILL
    booked: bool = False
    session: int = 0
    prefill_tokens: int = 0
    decode_blocks: int = 0


NOTHING = InFlight()


class Ledger:
    """Bookings of this router and of its replicas, by worker and request. Pure."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._entries: dict[WorkerId, dict[RequestId, _Entry]] = {}
        self._sums: dict[WorkerId, InFlight] = {}
        self._withdrawn: OrderedDict[tuple[RequestId, int], tuple[WorkerId, float]] = OrderedDict()
        """Attempts that nobody wants, except on the worker named, and until when that matters."""
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
        """A router, this one or another, has given a worker a request, which may have come far
        already. A later attempt takes the place of an earlier one."""
        if not self.wants(booking):
            return
        entry = self._entry(booking.worker, booking.request, booking.attempt, now_s)
        if entry is None or entry.booked or entry.stage is _Stage.ENDED:
            return
        entry.booked, entry.session = True, booking.session
        if entry.stage is _Stage.PREFILL:
            entry.prefill_tokens = booking.new_prefill_tokens
        entry.decode_blocks = booking.decode_blocks
        sums = self._sums.setdefault(booking.worker, InFlight())
        sums.requests += 1
        sums.prefill_tokens += entry.prefill_tokens
        sums.lately_tokens = (
            sums.prefill_rate(entry.heard_s) * LATELY_S + booking.new_prefill_tokens
        )
        sums.booked_s = entry.heard_s
        sums.decode_blocks += entry.decode_blocks
        self._bookings += 1
        self._changed.add(booking.worker)

    def hear(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far an attempt has come."""
        entry = self._entry(progress.worker, progress.request, progress.attempt, now_s)
        if entry is None:
            return
        entry.heard_s = now_s
        if progress.phase is Phase.ENDED:
            self._release(progress.worker, entry)
            entry.stage = _Stage.ENDED
        elif progress.phase is not Phase.DISPATCHED and entry.stage is _Stage.PREFILL:
            self._free_prefill(progress.worker, entry)
            entry.stage = _Stage.DECODE

    def prefilled(self, worker: WorkerId, before_s: float, token_s: float) -> None:
        """The worker has nothing left to prefill of what it was given before then. Bookings that
        have been spoken of since, or that would not have been done by then at `token_s` a token,
        may be on their way to it."""
        left_tokens = self.of(worker).prefill_tokens
        if not left_tokens:
            return
        for entry in reversed(self._entries[worker].values()):  # what is left is among the newest
            left_tokens -= entry.prefill_tokens
            if entry.prefill_tokens and entry.heard_s + entry.prefill_tokens * token_s < before_s:
                self._free_prefill(worker, entry)
                entry.stage = _Stage.DECODE
            if not left_tokens:
                return

    def withdraw(self, withdrawn: Withdrawn, now_s: float) -> list[WorkerId]:
        """Nobody wants what was booked for an attempt, or ever will be, except on the worker that
        is kept. Returns the workers that need not do what they were given for it."""
        freed: list[WorkerId] = []
        key = withdrawn.request, withdrawn.attempt
        self._withdrawn[key] = withdrawn.kept, now_s + self._silence_s
        self._withdrawn.move_to_end(key)
        if len(self._withdrawn) > WITHDRAWN_MAX:
            self._withdrawn.popitem(last=False)
        for worker, entries in self._entries.items():
            entry = entries.get(withdrawn.request)
            if entry is None or entry.attempt != withdrawn.attempt or worker == withdrawn.kept:
                continue
            if entry.booked:
                freed.append(worker)
            self._release(worker, entry)
            entry.stage, entry.heard_s = _Stage.ENDED, now_s
        return freed

    def wants(self, booking: Booking) -> bool:
        """Whether it has not been withdrawn, as far as is known."""
        if not self._withdrawn:
            return True
        kept, _ = self._withdrawn.get((booking.request, booking.attempt), (booking.worker, 0.0))
        return kept == booking.worker

    def bookings(self, after: tuple[WorkerId, RequestId]) -> Iterator[Booking]:
        """What has not ended, with the prefill that is left of it, ordered by worker and request;
        what comes after the one that is named. Who asks in parts misses nothing that was there
        from the first part to the last."""
        for worker in sorted(worker for worker in self._entries if worker >= after[0]):
            entries = self._entries[worker]
            for request in sorted(each for each in entries if (worker, each) > after):
                entry = entries[request]
                if entry.booked:
                    yield Booking(
                        request,
                        worker,
                        entry.prefill_tokens,
                        entry.decode_blocks,
                        entry.attempt,
                        entry.session,
                    )

    def forget(self, worker: WorkerId) -> None:
        """The worker is gone, and what it owed with it."""
        gone = self._entries.pop(worker, {})
        self._bookings -= sum(entry.booked for entry in gone.values())
        self._sums.pop(worker, None)
        self._changed.add(worker)

    def expire(self, now_s: float) -> int:
        """Drop what has been silent for too long; returns how many bookings that were."""
        before = self._bookings
        while self._withdrawn and next(iter(self._withdrawn.values()))[1] < now_s:
            self._withdrawn.popitem(last=False)
        for worker, entries in list(self._entries.items()):
            for request, entry in list(entries.items()):
                kept_s = ENDED_KEPT_S if entry.stage is _Stage.ENDED else self._silence_s
                if entry.heard_s < now_s - kept_s:
                    self._release(worker, entries.pop(request))
            if not entries:
                del self._entries[worker]
        for worker, sums in list(self._sums.items()):
            if worker not in self._entries and sums.booked_s < now_s - self._silence_s:
                del self._sums[worker]  # it may have left before its last booking came
        return before - self._bookings

    def _entry(
        self, worker: WorkerId, request: RequestId, attempt: int, now_s: float
    ) -> _Entry | None:
        """The entry of this attempt; None if a later one is known."""
        entries = self._entries.setdefault(worker, {})
        entry = entries.get(request)
        if entry is not None and attempt < entry.attempt:
            return None
        if entry is None or attempt > entry.attempt:
            if entry is not None:
                self._release(worker, entry)
            entry = entries[request] = _Entry(attempt, now_s)
        return entry

    def _free_prefill(self, worker: WorkerId, entry: _Entry) -> None:
        if entry.booked:
            self._sums[worker].prefill_tokens -= entry.prefill_tokens
            entry.prefill_tokens = 0
            self._changed.add(worker)

    def _release(self, worker: WorkerId, entry: _Entry) -> None:
        """Take what the entry adds out of the sums; an entry adds something once."""
        if entry.booked:
            self._free_prefill(worker, entry)
            sums = self._sums[worker]
            sums.requests -= 1
            sums.decode_blocks -= entry.decode_blocks
            entry.booked = False
            self._bookings -= 1
