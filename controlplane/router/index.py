"""The prefix index: which workers hold which KV blocks.

A name (see `proto.hashing`) stands for a block and all before it, so no tree is needed: `name ->
set of workers`, and a set is a bitmask. One index serves every model, adapter, tenant and block
size, because all of that is inside the name.

What a worker holds is prefix-closed (see `proto.kv`), so along a prompt its holders only become
fewer, and a match looks at few of its blocks (`gallop`).

A worker that leaves, or empties its cache, costs O(1): its bit is retired and counts no more. A
sweep takes it out of the sets, and out of the table what nobody holds any longer, in slices; only
then is the bit given out again.

Memory is 37 to 112 bytes a block (`blocktable`), however many workers hold it, and about 300 bytes
a different set of holders, of 512 workers (`holders`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.router.blocktable import BlockTable
from controlplane.router.changes import Changes, Holder
from controlplane.router.gallop import Gallop
from controlplane.router.holders import HolderSets, Rows
from proto.hashing import HASH_BYTES, Words
from proto.ids import WorkerId

Depths = NDArray[np.int64]
"""Leading blocks held, by seat."""

COUNTED_IN_A_BYTE = 255
"""Runs of a prompt that can be."""


class PrefixIndex:
    """Blocks by name. Pure: no clock, no I/O; every answer is exact at the time it is given."""

    def __init__(self) -> None:
        self._table = BlockTable()
        self._sets = HolderSets()
        self._changes = Changes(self._table, self._sets)
        self._gallop = Gallop(self._table, self._same)
        self._holders: dict[WorkerId, Holder] = {}
        self._live = 0
        """Every bit that belongs to a worker; retired bits are not in it."""
        self._live_row: Rows = self._sets.row(0)
        self._free: list[int] = []
        self._retired = 0
        self._sweeping: Iterator[None] | None = None
        self.seats = 0
        """How many seats there are: the length of what `match` gives."""
        self.seatings = 0
        """Rises whenever a worker takes or leaves a seat."""

    def __len__(self) -> int:
        """How many different blocks are held by anybody (or wait to be swept)."""
        self.settle()
        return len(self._table)

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self._holders

    @property
    def workers(self) -> Sequence[WorkerId]:
        return tuple(self._holders)

    @property
    def holder_sets(self) -> int:
        """How many different sets of workers hold blocks."""
        self.settle()
        return len(self._sets)

    def count(self, worker: WorkerId) -> int:
        """How many blocks the worker holds."""
        self.settle()
        holder = self._holders.get(worker)
        return holder.blocks if holder else 0

    def digest(self, worker: WorkerId) -> int:
        """Exclusive or of the names the worker holds."""
        self.settle()
        holder = self._holders.get(worker)
        return holder.digest if holder else 0

    def seat(self, worker: WorkerId) -> int:
        """Where the worker is in what `match` gives; changes when it leaves or empties its cache.
        KeyError if it is not there."""
        return self._holders[worker].seat

    def by_worker(self, depths: Depths) -> dict[WorkerId, int]:
        """An answer of `match` in words; workers that hold nothing are left out."""
        named = {worker: int(depths[self.seat(worker)]) for worker in self._holders}
        return {worker: depth for worker, depth in named.items() if depth}

    def join(self, worker: WorkerId) -> None:
        """Know a worker; it holds nothing yet. Joining twice is fine."""
        if worker not in self._holders:
            seat = self._free.pop() if self._free else self._new_seat()
            self._holders[worker] = Holder(seat, 1 << seat)
            self._seat(self._live | 1 << seat)

    def leave(self, worker: WorkerId) -> None:
        """Forget a worker and everything it held."""
        self.settle()
        holder = self._holders.pop(worker, None)
        if holder is not None:
            self._retired |= holder.bit
            self._seat(self._live & ~holder.bit)

    def clear(self, worker: WorkerId) -> None:
        """The worker holds nothing any more."""
        if self.count(worker):
            self.leave(worker)
            self.join(worker)

    def apply(
        self, worker: WorkerId, cleared: bool = False, removed: bytes = b"", stored: bytes = b""
    ) -> None:
        """The worker, which is there, holds nothing any more if `cleared`, then no longer holds
        what is removed, then holds what is stored, too: packed names.

        What it does not hold, or holds already, is ignored; so is the name 0, which has one chance
        in 2**64. Raises ValueError, and changes nothing, for names that are not whole.
        """
        if len(removed) % HASH_BYTES or len(stored) % HASH_BYTES:
            raise ValueError("removed or stored is not a whole number of names")
        if cleared:
            self.clear(worker)
        holder, changes = self._holders[worker], self._changes
        if removed and changes.gather(holder, False, removed):
            changes.make(self._live)
        if stored and changes.gather(holder, True, stored):
            changes.make(self._live)

    def settle(self) -> None:
        """Make the changes that have only been heard so far. Whoever asks does so first."""
        if self._changes:
            self._changes.make(self._live)

    def match(self, names: Words) -> Depths:
        """How many leading blocks of a prompt each worker holds, by seat.

        Exact for sets that are prefix-closed. While a worker's is not, as its lane waits for a
        snapshot, it is given what it holds before its first hole, or more.
        """
        self.settle()
        first = self._table.mark(names.item(0)) if len(names) else 0
        if not self._sets.masks[first] & self._live:
            return np.zeros(self.seats, dtype=np.int64)
        bounds, marks = self._gallop.runs(names, first)
        rows = np.bitwise_and.accumulate(self._sets.rows.take(marks, axis=0), axis=0)
        rows &= self._live_row
        holds = np.unpackbits(rows.view(np.uint8), axis=1, count=self.seats, bitorder="little")
        counter = np.uint8 if len(marks) <= COUNTED_IN_A_BYTE else np.int64
        depths: Depths = bounds.take(holds.sum(axis=0, dtype=counter))
        return depths

    def marks(self, names: Words) -> Words:
        """A mark for each block; blocks of equal marks have equal holders, 0 stands for none."""
        self.settle()
        return self._table.marks(names)

    def holds(self, marks: Words, seats: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether who sits there (one a row) holds blocks of these marks (one a column)."""
        rows = self._sets.rows[marks].view(np.uint8)
        bits = np.unpackbits(rows, axis=1, count=self.seats, bitorder="little")
        return bits.T.take(seats, axis=0).view(np.bool_)

    def sweep(self, entries_max: int) -> bool:
        """Go on with what is put off: changes, growth of the table, taking out what is retired.
        Does a slice of about `entries_max` entries; True if more is to be done."""
        self.settle()
        if self._table.settle():
            return True
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
        """The table has nothing to settle each time that this goes on."""
        yield from self._sets.strip(retired, entries_max)
        self._retired &= ~retired
        self._free += _seats_of(retired)
        # A name may be thrown out of its cell meanwhile, or moved as the table grows, to where the
        # sweep has been already: so it goes round until nothing is left.
        while dead := self._sets.dead():
            for first in range(0, self._table.cells, entries_max):
                names = self._table.marked(np.array(dead, dtype=np.uint64), first, entries_max)
                self._sets.move(self._table.rewrite(names, self._sets.burying))
                yield

    def _same(self, mark: int, other: int) -> bool:
        """Whether the same workers hold what bears these marks."""
        masks = self._sets.masks
        return not (masks[mark] ^ masks[other]) & self._live

    def _seat(self, live: int) -> None:
        """Another set of workers is there."""
        self._live = live
        self._live_row = self._sets.row(live)
        self.seatings += 1

    def _new_seat(self) -> int:
        self.seats += 1
        self._sets.reserve_bits(self.seats)
        return self.seats - 1


def _seats_of(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest
