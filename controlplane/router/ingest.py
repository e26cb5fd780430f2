"""One lane a worker: KV batches in order, holes noticed, snapshots fitted in. Pure.

A lane is *exact* when what it has let through is the worker's set as of `sequence`. When it is not,
or when it knows of batches that it has not got, it says in `needs` why a snapshot is wanted;
fetching one is the service's business. From then on it keeps every batch, applied or not, so that
a snapshot, which shows the set as of some sequence number, can be brought up to date.

What a lane gives back is to be applied at once and in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from proto.hashing import HASH_BYTES
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.load import LoadReport, TierSum

HELD_BYTES_MAX = 4 << 20
"""Kept by a lane that waits for its snapshot: half a million blocks of news."""
BATCH_BYTES = 256
"""What a batch weighs beside its names."""
CHUNKS_MAX = 4_096
"""256 Mi blocks; an agent that says it has more is not believed."""
PIECE_BYTES = 4_096 * HASH_BYTES
"""A snapshot is applied in pieces of this size: about two milliseconds of work."""


RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0


def retry_pause_s(failures: int) -> float:
    """How long to leave an agent alone that has failed to give a snapshot so many times."""
    return min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(failures - 1, 10))


class BadSnapshot(ValueError):
    """These chunks do not make a snapshot that can be used; says why."""


class Snapshot:
    """A worker's whole set, put together from the chunks that an agent sends."""

    def __init__(self, worker: WorkerId) -> None:
        self.worker = worker
        self._chunks: list[KvSnapshotChunk] = []

    @property
    def next_request(self) -> KvSnapshotRequest:
        """What to ask the agent for next."""
        snapshot = self._chunks[0].snapshot if self._chunks else 0
        return KvSnapshotRequest(snapshot, len(self._chunks))

    @property
    def complete(self) -> bool:
        return bool(self._chunks) and self._chunks[-1].last

    @property
    def incarnation(self) -> int:
        return self._chunks[0].incarnation

    @property
    def sequence(self) -> int:
        return self._chunks[0].sequence

    def add(self, chunk: KvSnapshotChunk) -> None:
        """Take the answer to `next_request`. Raises `BadSnapshot`."""
        if chunk.worker != self.worker or chunk.chunk != len(self._chunks):
            raise BadSnapshot(
                f"asked {self.worker} for chunk {len(self._chunks)} and got chunk {chunk.chunk}"
                f" of {chunk.worker}"
            )
        if len(chunk.names) % HASH_BYTES:
            raise BadSnapshot(f"{len(chunk.names)} bytes are not a whole number of names")
        if self._chunks and _identity(chunk) != _identity(self._chunks[0]):
            raise BadSnapshot("the chunks are of different snapshots")
        if len(self._chunks) == CHUNKS_MAX:
            raise BadSnapshot(f"more than {CHUNKS_MAX} chunks")
        self._chunks.append(chunk)

    def pieces(self) -> Iterator[KvBatch]:
        """The whole set as batches: the first ones empty the worker, the others store."""
        yield from _emptied(self.worker)
        for chunk in self._chunks:
            for start in range(0, len(chunk.names), PIECE_BYTES):
                names = chunk.names[start : start + PIECE_BYTES]
                yield KvBatch(self.worker, stored=names, tier=Tier(chunk.tier))


class Held(NamedTuple):
    """Our copy of what a worker holds, summed up."""

    blocks: int = 0
    """In the GPU tier."""
    digest: int = 0
    """Of the GPU tier."""
    slower: tuple[TierSum, ...] = ()

    def agrees_with(self, report: LoadReport) -> bool:
        """Whether the worker has just that; of slower tiers not every agent speaks."""
        near = (self.blocks, self.digest) == (report.live_blocks, report.digest)
        return near and report.slower in (None, self.slower)


class Lane:
    """The numbered stream of one worker, as far as it has been applied."""

    def __init__(self, worker: WorkerId, held_bytes_max: int = HELD_BYTES_MAX) -> None:
        self.incarnation = 0
        self.sequence = 0
        """Of the last batch applied."""
        self.needs: str | None = None
        """Why a snapshot is needed: a short word for the metric; None when the lane is true."""
        self._worker = worker
        self._exact = True
        self._known = 0
        """The greatest sequence number known to have been sent."""
        self._held: dict[int, KvBatch] = {}
        self._held_bytes = 0
        self._held_bytes_max = held_bytes_max
        self._installing: Snapshot | None = None

    def registered(self, incarnation: int) -> Sequence[KvBatch]:
        """The registry shows the worker under this incarnation."""
        if incarnation <= self.incarnation:
            return ()
        self._begin(incarnation, "joined")
        return _emptied(self._worker)

    def offer(self, incarnation: int, sequence: int, batch: KvBatch) -> Sequence[KvBatch]:
        """Take a batch as it arrives, be it late, early, a second time or of an earlier life.
        Raises ValueError if its names are not whole; that one then counts as lost."""
        if len(batch.stored) % HASH_BYTES or len(batch.removed) % HASH_BYTES:
            raise ValueError("a batch with a piece of a name")
        in_order = sequence == self.sequence + 1 and incarnation == self.incarnation
        if in_order and not (self.needs or self._held or self._installing):
            self.sequence = self._known = sequence
            return (batch,)
        voided = self.registered(incarnation)
        if incarnation < self.incarnation or sequence <= self.sequence or sequence in self._held:
            return voided
        self._known = max(self._known, sequence)
        self._hold(sequence, batch)
        if self._installing is not None:
            return voided
        if sequence > self.sequence + 1:
            self.needs = self.needs or "gap"
            return voided
        return (*voided, *self._advance())

    def check(self, report: LoadReport, incarnation: int, held: Held) -> Sequence[KvBatch]:
        """Hold our copy against the agent's word. Equal numbers at an equal sequence prove the
        copy right, whatever was wrong before."""
        voided = self.registered(incarnation)
        if voided:
            held = Held()
        if incarnation < self.incarnation:
            return voided
        self._known = max(self._known, report.kv_sequence)
        if self._installing is not None:
            return voided
        if report.kv_sequence > self.sequence:
            self.needs = self.needs or "behind"
        elif report.kv_sequence == self.sequence:
            self._exact = held.agrees_with(report)
            if not self._exact:
                self.needs = self.needs or "digest"
            else:
                self._settle()
        return voided

    def install(self, snapshot: Snapshot) -> Iterator[KvBatch]:
        """Replace what the worker is believed to hold; yields all that is to be applied.

        Others may run between two pieces. A worker that begins a new life meanwhile ends the
        installation. A lane that needs nothing is left as it is. Raises `BadSnapshot`, before
        anything is yielded, for one that is older than what has been applied and not kept.
        """
        if snapshot.incarnation < self.incarnation:
            raise BadSnapshot("the snapshot is of an earlier life")
        if snapshot.incarnation > self.incarnation:
            self._begin(snapshot.incarnation, "joined")
        if self.needs is None:
            return  # what was missing came while this was fetched
        applied_since = range(self.sequence, snapshot.sequence, -1)
        if any(sequence not in self._held for sequence in applied_since):
            raise BadSnapshot("the snapshot is older than what has been applied")
        self._installing, self._exact = snapshot, False
        try:
            for batch in self._pieces(snapshot):
                yield batch
                if self._installing is not snapshot:
                    return
            self._exact = True
        finally:
            if self._installing is snapshot:
                self._installing = None
        self._settle()
        if self.needs:
            self.needs = "gap"

    def _pieces(self, snapshot: Snapshot) -> Iterator[KvBatch]:
        """The snapshot, and then what is held and goes on from it, also what comes meanwhile."""
        yield from snapshot.pieces()
        self.sequence = snapshot.sequence
        self._known = max(self._known, snapshot.sequence)
        while (batch := self._held.get(self.sequence + 1)) is not None:
            self.sequence += 1
            yield batch

    def make_do(self) -> Sequence[KvBatch]:
        """There is no snapshot for now: what is held is to be applied across its holes, as news
        beats none. The lane goes on needing a snapshot."""
        if self._installing is not None:
            return ()
        ready = [self._held[s] for s in sorted(self._held) if s > self.sequence]
        if ready:
            self._exact = False
            self.sequence = max(self._held)
        return ready

    def _begin(self, incarnation: int, why: str) -> None:
        """A new life voids the past. Nothing is held at its beginning, so a lane that hears it
        from batch 1 on is exact."""
        self.incarnation, self.sequence, self._known = incarnation, 0, 0
        self.needs, self._exact, self._installing = why, True, None
        self._forget_until(max(self._held, default=0))

    def _advance(self) -> list[KvBatch]:
        """Go on as far as there is no hole."""
        ready = []
        while (batch := self._held.get(self.sequence + 1)) is not None:
            self.sequence += 1
            ready.append(batch)
        self._settle()
        return ready

    def _settle(self) -> None:
        """Need nothing and hold nothing once all that is known to have been said is applied."""
        if self._exact and self.sequence >= self._known:
            self.needs = None
            self._forget_until(self.sequence)

    def _hold(self, sequence: int, batch: KvBatch) -> None:
        self._held[sequence] = batch
        self._held_bytes += _weight(batch)
        while self._held_bytes > self._held_bytes_max and len(self._held) > 1:
            self._drop(next(iter(self._held)))  # a snapshot will cover the oldest

    def _forget_until(self, sequence: int) -> None:
        for old in [held for held in self._held if held <= sequence]:
            self._drop(old)

    def _drop(self, sequence: int) -> None:
        self._held_bytes -= _weight(self._held.pop(sequence))


def _emptied(worker: WorkerId) -> Sequence[KvBatch]:
    """The worker holds nothing, in no tier."""
    return tuple(KvBatch(worker, cleared=True, tier=tier) for tier in Tier)


def _identity(chunk: KvSnapshotChunk) -> tuple[int, int, int]:
    return chunk.snapshot, chunk.incarnation, chunk.sequence


def _weight(batch: KvBatch) -> int:
    return BATCH_BYTES + len(batch.stored) + len(batch.removed)
