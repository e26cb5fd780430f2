"""The prefix index: which workers hold which KV blocks.

A name (see `proto.hashing`) stands for a block and all before it, so no tree is needed: `name ->
set of workers`, and a set is a bitmask. One index serves every model, adapter, tenant and block
size, because all of that is inside the name.

A worker that leaves, or empties its cache, costs O(1): its bit is retired and counts no more. A
sweep takes it out of the sets, and out of the table what nobody holds any longer, in slices; only
then is the bit given out again.

Memory is 32 to 64 bytes a block (`blocktable`) and about 200 bytes a different set of holders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from controlplane.router.blocktable import LANES, BlockTable
from controlplane.router.holders import HolderSets
from proto.hashing import Words
from proto.ids import WorkerId

MATCH_BLOCKS = 1_024
"""Blocks looked up at once; a prompt is not read on once nobody holds all of it so far."""
MEMBERS_KEPT = 4_096


class PrefixIndex:
    """Blocks by name. Pure: no clock, no I/O; every answer is exact at the time it is given."""

    def __init__(self) -> None:
        self._table = BlockTable()
        self._sets = HolderSets()
        self._bits: dict[WorkerId, int] = {}
        self._owners: dict[int, WorkerId] = {}
        self._counts: dict[WorkerId, int] = {}
        self._digests: dict[WorkerId, int] = {}
        self._live = 0
        """Every bit that belongs to a worker; retired bits are not in it."""
        self._free: list[int] = []
        self._next_bit = 1
        self._retired = 0
        self._sweeping: Iterator[None] | None = None
        self._members: dict[int, Sequence[WorkerId]] = {}

    def __len__(self) -> int:
        """How many different blocks are held by anybody (or wait to be swept)."""
        return len(self._table)

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._bits

    @property
    def workers(self) -> Sequence[WorkerId]:
        return tuple(self._bits)

    @property
    def holder_sets(self) -> int:
        """How many different sets of workers hold blocks."""
        return len(self._sets)

    def count(self, worker: WorkerId) -> int:
        """How many blocks the worker holds."""
        return self._counts.get(worker, 0)

    def digest(self, worker: WorkerId) -> int:
        """Exclusive or of the names the worker holds."""
        return self._digests.get(worker, 0)

    def join(self, worker: WorkerId) -> None:
        """Know a worker; it holds nothing yet. Joining twice is fine."""
        if worker not in self._bits:
            bit = self._free.pop() if self._free else self._new_bit()
            self._bits[worker] = bit
            self._owners[bit] = worker
            self._counts[worker] = self._digests[worker] = 0
            self._live |= bit

    def leave(self, worker: WorkerId) -> None:
        """Forget a worker and everything it held."""
        bit = self._bits.pop(worker, 0)
        if bit:
            del self._owners[bit], self._counts[worker], self._digests[worker]
            self._live &= ~bit
            self._retired |= bit
            self._members.clear()

    def clear(self, worker: WorkerId) -> None:
        """The worker holds nothing any more."""
        if self._counts.get(worker):
            self.leave(worker)
            self.join(worker)

    def store(self, worker: WorkerId, names: Sequence[int]) -> None:
        """The worker holds these, too. The name 0 is ignored: it has one chance in 2**64."""
        if 0 in names:
            names = [name for name in names if name]
        self._table.reserve(len(names))
        moved = self._table.rewrite(names, self._sets.adding(self._bits[worker], self._live))
        self._sets.move(moved)
        for move in moved:
            self._counts[worker] += move.names
            self._digests[worker] ^= move.digest

    def remove(self, worker: WorkerId, names: Sequence[int]) -> None:
        """The worker no longer holds these; what it did not hold is ignored."""
        if 0 in names:
            names = [name for name in names if name]
        moved = self._table.rewrite(names, self._sets.removing(self._bits[worker], self._live))
        self._sets.move(moved)
        for move in moved:
            self._counts[worker] -= move.names
            self._digests[worker] ^= move.digest

    def match(self, names: Words) -> dict[WorkerId, int]:
        """How many leading blocks of a prompt each worker holds; workers with none are absent.

        Looks at every block until nobody goes on, so that a worker which has evicted a block in
        the middle counts up to the hole and no further.
        """
        depths: dict[WorkerId, int] = {}
        masks, holding = self._sets.masks, self._live
        if not len(names) or not masks[self._table.mark(int(names[0]))] & holding:
            return depths
        for start in range(0, len(names), MATCH_BLOCKS):
            for depth, mark in self._runs(names[start : start + MATCH_BLOCKS]):
                still = masks[mark] & holding
                if still != holding:
                    self._note(depths, holding & ~still, start + depth)
                    if not still:
                        return depths
                    holding = still
        self._note(depths, holding, len(names))
        return depths

    def sweep(self, entries_max: int) -> bool:
        """Go on with taking out what is retired, in a slice of about `entries_max` entries; True
        if more is to be done."""
        if self._sweeping is None:
            if not self._retired:
                return False
            self._sweeping = self._sweep(self._retired, entries_max)
        try:
            next(self._sweeping)
        except StopIteration:
            self._sweeping = None
        return self._sweeping is not None or bool(self._retired)

    def _sweep(self, retired: int, entries_max: int) -> Iterator[None]:
        yield from self._sets.strip(retired, entries_max)
        self._retired &= ~retired
        self._free += _bits_of(retired)
        dead = np.array(self._sets.dead(), dtype=np.uint64)
        if not len(dead):
            return
        buckets = max(1, entries_max // LANES)
        first = 0
        # While this goes on the table may double: bucket b is split into b and b + buckets, both
        # of them still to come or, if b has been swept, free of what is dead.
        while first < self._table.buckets:
            names = self._table.marked(dead, first, buckets)
            self._sets.move(self._table.rewrite(names, self._sets.burying))
            first += buckets
            yield

    def _runs(self, names: Words) -> Iterator[tuple[int, int]]:
        """Where each run of blocks with equal marks begins, and the mark."""
        marks = self._table.marks(names)
        starts = [0, *(np.flatnonzero(marks[1:] != marks[:-1]) + 1).tolist()]
        return zip(starts, marks[starts].tolist(), strict=True)

    def _note(self, depths: dict[WorkerId, int], bits: int, depth: int) -> None:
        if not depth:
            return
        members = self._members.get(bits)
        if members is None:
            if len(self._members) >= MEMBERS_KEPT:
                self._members.clear()
            members = self._members[bits] = tuple(self._owners[bit] for bit in _bits_of(bits))
        depths.update(dict.fromkeys(members, depth))

    def _new_bit(self) -> int:
        bit = self._next_bit
        self._next_bit <<= 1
        return bit


def _bits_of(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest
        mask ^= lowest
