"""How much of a prompt each worker holds: what agents say, and what we guess of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from controlplane.router.fleet import Fleet
from controlplane.router.guesses import Guesses
from controlplane.router.index import PrefixIndex
from controlplane.router.policies.base import Ints, Overlap
from controlplane.router.settings import RouterSettings
from controlplane.router.tiers import Tiers
from proto.ids import WorkerId
from proto.kv import KvBatch, Tier
from proto.progress import COMPLETED, Booking, Phase, Progress
from proto.route import RouteRequest

SLOWER_TIERS = len(Tier) - 1


class _Tokens(NamedTuple):
    """What workers have of a prompt, by row, in tokens."""

    near: Ints
    """In the GPU, as agents say."""
    guessed: Ints | None
    """None: nothing is guessed of."""
    slower: Ints | None
    """One row of this a slower tier; None if nothing is there."""


class _Seating(NamedTuple):
    """Where a source has the workers of a fleet, by row, for as long as nobody moves."""

    seatings: int
    changes: int
    seats: Ints


class Overlaps:
    """What is known of caches, tier by tier, and what is guessed: soon, and for want of events."""

    def __init__(self, settings: RouterSettings) -> None:
        self.known = Tiers()
        self._credits = np.array([settings.host_credit, settings.disk_credit])
        self._coming = Guesses(settings.coming_s, settings.assumed_tokens)
        self._assumed = Guesses(settings.assumed_s, settings.assumed_tokens)
        self._seatings: dict[tuple[PrefixIndex | Guesses, Fleet], _Seating] = {}

    def of(self, request: RouteRequest, fleet: Fleet, now_s: float) -> Overlap:
        """What each worker of the fleet holds of the prompt, by row.

        What is guessed is taken to be in the GPU, as it will be once the worker has done with the
        prompt that made the guess.
        """
        self._coming.expire(now_s)
        self._assumed.expire(now_s)
        sizes = [size for size in fleet.block_sizes if size in request.blocks]
        if len(sizes) == len(fleet.block_sizes) == 1:
            near, guessed, slower = self._of_size(request, fleet, sizes[0])
        else:
            near, guessed, slower = self._of_sizes(request, fleet, sizes)
        if slower is None:
            cached = near if guessed is None else np.maximum(near, guessed)
            nothing: Ints = np.zeros(len(fleet), dtype=np.int64)
            return Overlap(cached, cached, *[nothing] * SLOWER_TIERS)
        saved = near + (self._credits @ slower).astype(np.int64)
        held = near + slower.sum(axis=0)
        if guessed is None:
            return Overlap(saved, held, *slower)
        return Overlap(np.maximum(saved, guessed), np.maximum(held, guessed), *slower)

    def _of_size(self, request: RouteRequest, fleet: Fleet, size: int) -> _Tokens:
        """What is held of the blocks of one size; right for workers that have blocks of it."""
        names = np.frombuffer(request.blocks[size], dtype="<u8")
        found = self.known.match(names, lambda index: self._seats(index, fleet))
        guessed = None
        for source in (self._coming, self._assumed):
            if len(source):
                seats = self._seats(source, fleet)
                depths = source.match(names, size).take(seats)
                guessed = depths if guessed is None else np.maximum(guessed, depths)
        return _Tokens(
            found.gpu * size,
            None if guessed is None else guessed * size,
            None if found.slower is None else found.slower * size,
        )

    def _of_sizes(self, request: RouteRequest, fleet: Fleet, sizes: Sequence[int]) -> _Tokens:
        """The same of all workers, where some have blocks of another size."""
        near: Ints = np.zeros(len(fleet), dtype=np.int64)
        guessed: Ints = np.zeros(len(fleet), dtype=np.int64)
        slower: Ints = np.zeros((SLOWER_TIERS, len(fleet)), dtype=np.int64)
        for size in sizes:
            found = self._of_size(request, fleet, size)
            of_size = fleet.block_tokens == size
            for tokens, column in zip(found, (near, guessed, slower), strict=True):
                if tokens is not None:
                    np.copyto(column, tokens, where=of_size)
        return _Tokens(near, guessed, slower if slower.any() else None)

    def expect(
        self,
        request: RouteRequest,
        booking: Booking,
        block_tokens: int,
        now_s: float,
        *,
        told: bool,
    ) -> None:
        """A worker was given the prompt, and will hold its blocks; `told`: we shall be told so."""
        if packed := request.blocks.get(block_tokens):
            guesses = self._coming if told else self._assumed
            guesses.expect(booking, np.frombuffer(packed, dtype="<u8"), block_tokens, now_s)

    def progress(self, progress: Progress, now_s: float) -> None:
        """A gateway says how far a request has come."""
        if progress.phase is Phase.DISPATCHED:
            return
        ended = progress.phase is Phase.ENDED and not progress.output_tokens
        if ended and progress.outcome != COMPLETED:  # a prefill for another worker gives no tokens
            self.take_back(progress, now_s)
            return
        for guesses in (self._coming, self._assumed):
            guesses.computed(progress)

    def take_back(self, prompt: Booking | Progress, now_s: float) -> None:
        """A worker that was given the prompt will not compute it, unless it has."""
        for guesses in (self._coming, self._assumed):
            guesses.take_back(prompt, now_s)

    def told_again(self, worker: WorkerId) -> None:
        """The worker tells of its cache, after a time in which it did not."""
        self._assumed.forget(worker)

    def began_anew(self, worker: WorkerId) -> None:
        """The worker lives another life, in which it was given nothing yet."""
        self._coming.forget(worker)
        self._assumed.forget(worker)

    def apply(self, batch: KvBatch) -> None:
        """An agent says what came of its engine's cache; as `Tiers.apply`."""
        self.known.apply(batch)
        if batch.cleared and batch.tier is Tier.GPU:
            self._coming.forget(batch.worker)

    def leave(self, worker: WorkerId) -> None:
        """The worker is gone."""
        self.known.leave(worker)
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
