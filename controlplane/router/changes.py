"""Changes of what workers hold: gathered as they come, and made many at a time.

A change alone costs some 300 ns a block, most of it Python's; a thousand blocks from any number of
workers, looked up, weighed and written as vectors, a third of that. Nobody sees the difference: who
asks the index anything makes it take in first what has been gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.router.blocktable import BlockTable
from controlplane.router.cuckoo import Moved
from controlplane.router.holders import HolderSets
from proto.hashing import HASH_BYTES, Words, unpack

GATHERED_BLOCKS = 2_048
"""Made at once, at the latest: some 300 us."""
MANY_BLOCKS = 128
"""As few as are worth a vector."""

Places = NDArray[np.int64]


@dataclass(slots=True)
class Holder:
    """A worker's seat, and what the blocks that it holds add up to."""

    seat: int
    bit: int
    blocks: int = 0
    digest: int = 0


class Changes:
    """What is to be done to a table and the sets that its marks number.

    A change is of a kind, which says who stores, or removes: `2 * seat + stored`.
    """

    def __init__(self, table: BlockTable, sets: HolderSets) -> None:
        self._table = table
        self._sets = sets
        self._holders: dict[int, Holder] = {}
        """By kind."""
        self._kinds: list[int] = []
        self._names: list[bytes] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether there is anything to be made."""
        return self._bytes > 0

    def gather(self, holder: Holder, stored: bool, names: bytes) -> bool:
        """The worker stores these blocks, or removes them: packed names, to be kept for later.
        True if it is time to make all changes."""
        kind = 2 * holder.seat + stored
        self._holders[kind] = holder
        self._kinds.append(kind)
        self._names.append(names)
        self._bytes += len(names)
        return self._bytes >= GATHERED_BLOCKS * HASH_BYTES

    def make(self, live: int) -> None:
        """Make all that is gathered, in order; `live` are the bits that belong to workers."""
        if self._bytes < MANY_BLOCKS * HASH_BYTES:
            for kind, names in zip(self._kinds, self._names, strict=True):
                self._make_one(kind, unpack(names), live)
        else:
            self._make_many(live)
        self._holders.clear()
        self._kinds.clear()
        self._names.clear()
        self._bytes = 0

    def _make_one(self, kind: int, names: Sequence[int], live: int) -> None:
        after, bit, stored = self._sets.after, self._holders[kind].bit, kind % 2 == 1
        moves = self._table.rewrite(names, lambda mark: after(mark, bit, stored, live))
        for move in moves:
            self._count(kind, move)
        self._sets.move(moves)

    def _make_many(self, live: int) -> None:
        names = np.frombuffer(b"".join(self._names), dtype="<u8")
        ends = np.cumsum(list(map(len, self._names))) // HASH_BYTES
        kinds = np.array(self._kinds)
        again = _said_again(names)
        if again is None:
            self._make_all(names, kinds, ends, live)
            return
        # What is said of a block for the first time goes first: changes of different blocks may
        # change places.
        agains = np.concatenate(([0], np.cumsum(again)))[ends]
        self._make_all(names[~again], kinds, ends - agains, live)
        for kind, some in zip(self._kinds, np.split(names[again], agains[:-1]), strict=True):
            self._make_one(kind, some.tolist(), live)

    def _make_all(self, names: Words, kinds: Places, ends: Places, live: int) -> None:
        """`names` are those of all changes, one after the other up to each one's end; none is 0
        and none comes twice."""

        def decide(old: Words) -> Words:
            groups = _grouped(names, old, kinds, ends)
            moves = []
            for kind, mark, blocks, digest in groups.each():
                new = self._sets.after(mark, self._holders[kind].bit, kind % 2 == 1, live)
                move = Moved(mark, new, blocks, digest)
                moves.append(move)
                if new != mark:
                    self._count(kind, move)
            self._sets.move(moves)
            return groups.spread([move.new for move in moves])

        if len(names):
            self._table.update(names, decide)

    def _count(self, kind: int, move: Moved) -> None:
        """The worker has come to hold these, or no longer holds them."""
        holder = self._holders[kind]
        holder.blocks += move.names if kind % 2 else -move.names
        holder.digest ^= move.digest


class _Groups(NamedTuple):
    """Names with one mark, of which the same is said; each consists of runs, wherever they are."""

    kinds: Places
    marks: Places
    names: Places
    digests: Words
    of_runs: Places
    """The group of each run."""
    lengths: Places
    """Of each run."""

    def each(self) -> Iterable[tuple[int, int, int, int]]:
        """Kind, mark, how many names, and their exclusive or."""
        columns = (self.kinds, self.marks, self.names, self.digests)
        return zip(*[column.tolist() for column in columns], strict=True)

    def spread(self, values: Sequence[int]) -> Words:
        """One value a group as one a name."""
        return np.repeat(np.array(values, dtype=np.uint64)[self.of_runs], self.lengths)


def _grouped(names: Words, marks: Words, kinds: Places, ends: Places) -> _Groups:
    starts = _run_starts(marks, ends)
    lengths = np.diff(starts, append=len(names))
    digests = np.bitwise_xor.reduceat(names, starts)
    radix = int(kinds.max()) + 1
    keys = marks[starts].view(np.int64) * radix + kinds[ends.searchsorted(starts, "right")]
    order = np.argsort(keys, kind="stable")
    ranked = keys[order]
    is_first = np.concatenate(([True], ranked[1:] != ranked[:-1]))
    firsts = np.flatnonzero(is_first)
    of_runs = np.empty_like(order)
    of_runs[order] = np.cumsum(is_first) - 1
    return _Groups(
        kinds=ranked[firsts] % radix,
        marks=ranked[firsts] // radix,
        names=np.add.reduceat(lengths[order], firsts),
        digests=np.bitwise_xor.reduceat(digests[order], firsts),
        of_runs=of_runs,
        lengths=lengths,
    )


def _said_again(names: Words) -> NDArray[np.bool_] | None:
    """Which of the names have come before, or are 0; None if there are none such."""
    ranked = np.sort(names)
    if ranked[0] and (ranked[1:] != ranked[:-1]).all():
        return None
    order = np.argsort(names, kind="stable")
    again: NDArray[np.bool_] = names == 0
    again[order[1:][names[order[1:]] == names[order[:-1]]]] = True
    return again


def _run_starts(marks: Words, ends: Places) -> Places:
    """Where a run of equal marks within one change begins."""
    starts = np.empty(len(marks), dtype=bool)
    starts[0] = True
    np.not_equal(marks[1:], marks[:-1], out=starts[1:])
    starts[ends[ends < len(marks)]] = True
    return np.flatnonzero(starts)
