"""How much of a prompt each worker holds: what agents say, and what we guess of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from controlplane.router.fleet import Fleet
from controlplane.router.guesses import Guesses
from controlplane.router.index import PrefixIndex
from controlplane.router.policies.base import Ints
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.route import RouteRequest
from proto.workers import WorkerRecord


class _Seating(NamedTuple):
    """Where a source has the workers of a fleet, by row, for as long as nobody moves."""

    seatings: int
    changes: int
    seats: Ints


class Overlaps:
    """The index of what is known, and two of what is guessed: soon, and for want of events."""

    def __init__(self, settings: RouterSettings) -> None:
        self.index = PrefixIndex()
        self._coming = Guesses(settings.coming_s, settings.assumed_tokens)
        self._assumed = Guesses(settings.assumed_s, settings.assumed_tokens)
        self._seatings: dict[tuple[PrefixIndex | Guesses, Fleet], _Seating] = {}

    def cached_tokens(self, request: RouteRequest, fleet: Fleet, now_s: float) -> Ints:
        """Leading tokens of the prompt that each worker of the fleet holds, by row."""
        cached: Ints = np.zeros(len(fleet), dtype=np.int64)
        self._coming.expire(now_s)
        self._assumed.expire(now_s)
        for size in request.blocks.keys() & set(fleet.block_sizes):
            names = np.frombuffer(request.blocks[size], dtype="<u8")
            of_size = fleet.block_tokens == size
            for source in (self.index, self._coming, self._assumed):
                if len(source):
                    seats = self._seats(source, fleet)
                    blocks = (
                        source.match(names)
                        if isinstance(source, PrefixIndex)
                        else source.match(names, size)
                    )
                    np.maximum(cached, blocks.take(seats) * size, out=cached, where=of_size)
        return cached

    def expect(self, request: RouteRequest, record: WorkerRecord, now_s: float) -> None:
        """A worker was given the prompt, and will hold its blocks."""
        if packed := request.blocks.get(record.block_tokens):
            guesses = self._coming if record.kv_events else self._assumed
            names = np.frombuffer(packed, dtype="<u8")
            guesses.expect(record.worker, names, record.block_tokens, now_s)

    def emptied(self, worker: WorkerId) -> None:
        """The worker held nothing any more: what it was about to hold is lost, too."""
        self._coming.forget(worker)

    def leave(self, worker: WorkerId) -> None:
        """The worker is gone."""
        self.index.leave(worker)
        self._coming.leave(worker)
        self._assumed.leave(worker)

    def forget(self, fleet: Fleet) -> None:
        """Nobody serves that model any more."""
        self._seatings = {key: kept for key, kept in self._seatings.items() if key[1] is not fleet}

    def _seats(self, source: PrefixIndex | Guesses, fleet: Fleet) -> Ints:
        known = self._seatings.get((source, fleet))
        if known is None or (known.seatings, known.changes) != (source.seatings, fleet.changes):
            for worker in fleet.workers:
                source.join(worker)
            seats = np.array([source.seat(worker) for worker in fleet.workers], dtype=np.int64)
            known = _Seating(source.seatings, fleet.changes, seats)
            self._seatings[source, fleet] = known
        return known.seats
