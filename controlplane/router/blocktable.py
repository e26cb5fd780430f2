"""A hash table from 64-bit block names to small numbers, made for whole prompts at a time.

Reading is vectorised: the marks of a thousand names cost one gather of cache lines, which Python's
dict, at a cache miss or two a name, takes ten times as long for. Writing goes name by name through
a memoryview, so that a batch of sixteen blocks is not slower by the name than one of thousands.

A bucket is one row of `2 * LANES` words, a cache line: names first, their marks after. Names are
well mixed (see `proto.hashing`), so their low bits choose the bucket. Lanes are filled from the
left; what finds its bucket full is spilled into a small dict, which is looked at for full buckets
only. The table doubles at `LOAD_MAX`: 32 to 64 bytes a name, and at most four names in a hundred
spilled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words

LANES = 4
LOAD_MAX = 0.5
FIRST_BUCKETS = 1_024

_ROW = 2 * LANES
_ROW_BITS = _ROW.bit_length() - 1
_LAST_LANE = LANES - 1


class Moved(NamedTuple):
    """So many names went from one mark to another; `digest` is the exclusive or of them."""

    old: int
    new: int
    names: int
    digest: int


class BlockTable:
    """Names and their marks. A mark is a whole number from 1; 0 means that a name is not there.

    The name 0 cannot be kept, as it says that a lane is empty.
    """

    def __init__(self, buckets: int = FIRST_BUCKETS) -> None:
        """`buckets` to begin with: a power of two."""
        self._names = 0
        self._spilled: dict[int, dict[int, int]] = {}
        self._allocate(buckets)

    def __len__(self) -> int:
        """How many names are there."""
        return self._names

    @property
    def buckets(self) -> int:
        return len(self._rows)

    def reserve(self, names: int) -> None:
        """Make room for so many names more. Doubles the table at once, which takes a moment: some
        80 ms from a million names to two."""
        buckets = self.buckets
        while self._names + names > buckets * LANES * LOAD_MAX:
            buckets *= 2
        if buckets > self.buckets:
            every_name, every_mark = self._everything()
            self._spilled = {}
            self._allocate(buckets)
            self._place(every_name, every_mark)

    def mark(self, name: int) -> int:
        """The mark of one name."""
        at, held = self._find(name)
        if held == name:
            return self._cells[at + LANES]
        return self._spilled.get(name & self._mask, {}).get(name, 0) if held else 0

    def marks(self, names: Words) -> Words:
        """The mark of each name."""
        buckets = (names & np.uint64(self._mask)).view(np.int64)
        rows = self._rows.take(buckets, axis=0)
        marks: Words = np.zeros_like(names)
        for lane in range(LANES):
            np.copyto(marks, rows[:, LANES + lane], where=rows[:, lane] == names)
        if self._spilled and np.count_nonzero(marks) < len(marks):
            for i in np.flatnonzero((marks == 0) & (rows[:, _LAST_LANE] != 0)).tolist():
                marks[i] = self._spilled.get(int(buckets[i]), {}).get(int(names[i]), 0)
        return marks

    def rewrite(self, names: Sequence[int], successor: Callable[[int], int]) -> list[Moved]:
        """Give each name the successor of its mark, 0 standing for absence on either side.

        `successor` must be a plain function of the mark; it is called once for each run of equal
        marks. Returns what became of those whose mark has changed.
        """
        cells, mask = self._cells, self._mask
        moved: list[Moved] = []
        run_old = run_new = -1
        count = digest = 0
        for name in names:
            at = (name & mask) << _ROW_BITS
            held = cells[at]
            while held != name and held and at & _LAST_LANE != _LAST_LANE:
                at += 1
                held = cells[at]
            if held == name:
                old = cells[at + LANES]
            elif held:
                old = self._spilled_mark(name)
            else:
                old = 0
            if old != run_old:
                if count:
                    moved.append(Moved(run_old, run_new, count, digest))
                    count = digest = 0
                run_old, run_new = old, successor(old)
            if run_new == old:
                continue
            count += 1
            digest ^= name
            if held == name and run_new:
                cells[at + LANES] = run_new
            elif held == 0:
                cells[at] = name
                cells[at + LANES] = run_new
                self._names += 1
            elif held == name:
                self._delete(at)
            else:
                self._spill(name, run_new)
        if count:
            moved.append(Moved(run_old, run_new, count, digest))
        return moved

    def marked(self, marks: NDArray[np.uint64], first_bucket: int, buckets: int) -> list[int]:
        """Names in a range of buckets that bear one of these marks, none of which is 0."""
        rows = self._rows[first_bucket : first_bucket + buckets]
        names: list[int] = rows[:, :LANES][np.isin(rows[:, LANES:], marks)].tolist()
        if self._spilled:
            wanted = set(marks.tolist())
            for bucket in (np.flatnonzero(rows[:, _LAST_LANE]) + first_bucket).tolist():
                spilled = self._spilled.get(bucket, {})
                names += [name for name, mark in spilled.items() if mark in wanted]
        return names

    def _allocate(self, buckets: int) -> None:
        # Rows begin where cache lines do; numpy itself promises 16 bytes.
        words = np.zeros(buckets * _ROW + _ROW, dtype=np.uint64)
        skipped = -(words.ctypes.data // words.itemsize) % _ROW
        self._rows = words[skipped : skipped + buckets * _ROW].reshape(buckets, _ROW)
        self._cells = self._rows.reshape(-1).data
        self._mask = buckets - 1

    def _find(self, name: int) -> tuple[int, int]:
        """The cell where the name is or could be put, and what is there: itself, or 0, or another
        name if the bucket is full."""
        cells = self._cells
        at = (name & self._mask) << _ROW_BITS
        held = cells[at]
        while held != name and held and at & _LAST_LANE != _LAST_LANE:
            at += 1
            held = cells[at]
        return at, held

    def _delete(self, at: int) -> None:
        """Empty a cell; the last lane that is used takes its place, or else a spilled name."""
        cells, bucket = self._cells, at >> _ROW_BITS
        self._names -= 1
        spilled = self._spilled.get(bucket)
        if spilled is not None:
            cells[at], cells[at + LANES] = spilled.popitem()
            if not spilled:
                del self._spilled[bucket]
            return
        last = (bucket << _ROW_BITS) + _LAST_LANE
        while not cells[last]:
            last -= 1
        cells[at], cells[at + LANES] = cells[last], cells[last + LANES]
        cells[last] = cells[last + LANES] = 0

    def _spilled_mark(self, name: int) -> int:
        spilled = self._spilled.get(name & self._mask)
        return spilled.get(name, 0) if spilled else 0

    def _spill(self, name: int, mark: int) -> None:
        """Set or delete the mark of a name whose bucket is full of others."""
        bucket = name & self._mask
        spilled = self._spilled.setdefault(bucket, {})
        self._names -= name in spilled
        if mark:
            spilled[name] = mark
            self._names += 1
        else:
            del spilled[name]
            if not spilled:
                del self._spilled[bucket]

    def _everything(self) -> tuple[Words, Words]:
        used = self._rows[:, :LANES] != 0
        spilled = [item for bucket in self._spilled.values() for item in bucket.items()]
        more = np.array(spilled, dtype=np.uint64).reshape(-1, 2)
        names = np.concatenate((self._rows[:, :LANES][used], more[:, 0]))
        return names, np.concatenate((self._rows[:, LANES:][used], more[:, 1]))

    def _place(self, names: Words, marks: Words) -> None:
        """Put different names into an empty table, lane by lane."""
        for lane in range(LANES):
            buckets = (names & np.uint64(self._mask)).view(np.int64)
            # Of several names for one cell the last one written stays; the others go on.
            self._rows[buckets, lane] = names
            placed = self._rows[buckets, lane] == names
            self._rows[buckets[placed], LANES + lane] = marks[placed]
            names, marks = names[~placed], marks[~placed]
        for name, mark in zip(names.tolist(), marks.tolist(), strict=True):
            self._spilled.setdefault(name & self._mask, {})[name] = mark
