"""A hash table of a fixed size, from 64-bit block names to small numbers: each name has two homes.

A name lies in one of two cells, which its halves choose, as names are well mixed (`proto.hashing`);
who comes to find both taken throws one of the two out, to its other home (Pagh and Rodler, 2001).
So a look-up reads two places at most, a thousand look-ups are a few vector operations, and to
delete is to empty a cell. Below half full, the way of those thrown out is short; in the rare case
that it does not end, a small dict takes the last.

A cell is two words side by side, name and mark, so that both come with one cache line.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words

CELL_WORDS = 2
CELL_BYTES = 16
PAGE_CELLS = mmap.PAGESIZE // CELL_BYTES
HALF = 32
"""Bits of a name that choose its first home; the others choose the second."""
THROWN_OUT_MAX = 200

Places = NDArray[np.int64]
Pairs = NDArray[np.uint64]
"""Names and their marks, side by side."""


class Moved(NamedTuple):
    """So many names went from one mark to another; `digest` is the exclusive or of them."""

    old: int
    new: int
    names: int
    digest: int


class Cuckoo:
    """Names and their marks. A mark is a whole number from 1; 0 means that a name is not there.

    The name 0 is never there, as it says that a cell is empty.
    """

    def __init__(self, cells: int) -> None:
        """`cells` is a power of two, at most 2**32."""
        # Pages come zeroed, when they are first touched, and small: numpy would ask for huge ones,
        # the first touch of which takes milliseconds.
        self._memory = mmap.mmap(-1, cells * CELL_BYTES)
        self._words = np.frombuffer(self._memory, dtype=np.uint64)
        self._cells = self._words.reshape(cells, CELL_WORDS)
        self._at = self._words.data
        self._mask = (cells - 1) * CELL_WORDS
        """Takes half a name to the first word of a cell."""
        self._names = 0
        self._homeless: dict[int, int] = {}

    def __len__(self) -> int:
        """How many names are there."""
        return self._names

    @property
    def cells(self) -> int:
        return len(self._cells)

    def touch(self, first_cell: int, cells: int) -> None:
        """Have the memory of a range of cells given to us; they are empty, as all of the table."""
        self._cells[first_cell : first_cell + cells : PAGE_CELLS] = 0

    # --- name by name

    def mark(self, name: int) -> int:
        """The mark of one name."""
        words, mask = self._at, self._mask
        at = name & mask
        if words[at] == name:
            return words[at + 1]
        at = name >> HALF & mask
        if words[at] == name:
            return words[at + 1]
        return self._homeless.get(name, 0) if self._homeless else 0

    def rewrite(self, names: Sequence[int], successor: Callable[[int], int]) -> list[Moved]:
        """Give each name the successor of its mark, 0 standing for absence on either side.

        `successor` must be a plain function of the mark; it is called once for each run of equal
        marks. Returns what became of those whose mark has changed. There must be room.
        """
        words, mask, homeless = self._at, self._mask, self._homeless
        moved: list[Moved] = []
        run_old = run_new = -1
        count = digest = 0
        for name in names:
            if not name:
                continue
            at = name & mask
            held = words[at]
            if held != name:
                second = name >> HALF & mask
                other = words[second]
                if held or other == name:
                    at, held = second, other
            # Now `held` is the name itself, or 0 where it may be put, or else both are taken.
            if held == name:
                old = words[at + 1]
            elif homeless:
                old = homeless.get(name, 0)
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
            if held == name:
                if not run_new:
                    words[at] = 0
                words[at + 1] = run_new
            elif old:
                self._keep_homeless(name, run_new)
            elif held:
                self._throw_out(name, run_new)
            else:
                words[at] = name
                words[at + 1] = run_new
        if count:
            moved.append(Moved(run_old, run_new, count, digest))
        for move in moved:
            self._names += move.names * ((not move.old) - (not move.new))
        return moved

    # --- many at once

    def marks(self, names: Words) -> Words:
        """The mark of each name."""
        marks = self._look_up(names)[1]
        if self._homeless:
            for i in np.flatnonzero(marks == 0).tolist():
                marks[i] = self._homeless.get(names.item(i), 0)
        return marks

    def update(self, names: Words, decide: Callable[[Words], Words]) -> None:
        """Give each name a new mark, which `decide` chooses, seeing the marks of all.

        No name may be 0 or come twice. There must be room.
        """
        if self._homeless:
            new = decide(self.marks(names)).tolist()
            for name, mark in zip(names.tolist(), new, strict=True):
                self.rewrite((name,), _always(mark))
            return
        at, old = self._look_up(names)
        new = decide(old)
        kept = np.flatnonzero((old != new) & (old != 0))
        cells, marks = at[kept], new[kept]
        gone = cells[marks == 0]
        self._words[cells + 1] = marks
        self._words[gone] = 0
        self._names -= len(gone)
        fresh = np.flatnonzero((old == 0) & (new != 0))
        self.put(names[fresh], new[fresh])

    def put(self, names: Words, marks: Words) -> None:
        """Add names that are not there. None may be 0 or come twice; there must be room."""
        words = self._words
        first, second = self._homes(names)
        at = np.where(words.take(first) == 0, first, second)
        vacant = np.flatnonzero(words.take(at) == 0)
        words[at[vacant]] = names[vacant]
        # Of several names for one cell one stays; the others, too, must throw somebody out.
        placed = words.take(at) == names
        words[at[placed] + 1] = marks[placed]
        self._names += len(names)
        for i in np.flatnonzero(~placed).tolist():
            self._throw_out(names.item(i), marks.item(i))

    def pop(self, names: Words) -> Pairs:
        """Delete those of the names that are there; returns them with their marks. None may be 0
        or come twice."""
        marks = self.marks(names)
        there = marks != 0
        taken = names[there]
        self.update(taken, np.zeros_like)
        return np.stack((taken, marks[there]), axis=1)

    def empty(self, first_cell: int, cells: int) -> Pairs:
        """Delete what is in a range of cells, and with the first one the homeless; returns it.

        Ranges follow each other from the first cell on, and nothing is added meanwhile: their
        memory is given back.
        """
        range_ = self._cells[first_cell : first_cell + cells]
        pairs: Pairs = range_[range_[:, 0] != 0]
        range_[:] = 0
        if not first_cell and self._homeless:
            homeless = np.array(tuple(self._homeless.items()), dtype=np.uint64)
            pairs = np.concatenate((pairs, homeless))
            self._homeless.clear()
        self._names -= len(pairs)
        self._give_back(first_cell // PAGE_CELLS, (first_cell + cells) // PAGE_CELLS)
        return pairs

    def marked(self, marks: NDArray[np.uint64], first_cell: int, cells: int) -> list[int]:
        """Names in a range of cells, and with the first one the homeless, that bear one of these
        marks, none of which is 0."""
        range_ = self._cells[first_cell : first_cell + cells]
        names: list[int] = range_[np.isin(range_[:, 1], marks), 0].tolist()
        if not first_cell:
            names += [name for name, mark in self._homeless.items() if mark in marks]
        return names

    def _give_back(self, first_page: int, end_page: int) -> None:
        """Bit by bit, as to give back all at once takes milliseconds, too."""
        end_page = min(end_page, self.cells // PAGE_CELLS)
        if first_page < end_page:
            start, end = first_page * mmap.PAGESIZE, end_page * mmap.PAGESIZE
            self._memory.madvise(mmap.MADV_DONTNEED, start, end - start)

    # --- homes

    def _homes(self, names: Words) -> tuple[Places, Places]:
        mask = np.uint64(self._mask)
        return (names & mask).view(np.int64), (names >> np.uint64(HALF) & mask).view(np.int64)

    def _look_up(self, names: Words) -> tuple[Places, Words]:
        """Where each name lies that has a home, and its mark; somewhere and 0 for others."""
        words, (first, second) = self._words, self._homes(names)
        at = np.where(words.take(first) == names, first, second)
        marks: Words = words.take(at + 1)
        marks *= words.take(at) == names
        return at, marks

    def _throw_out(self, name: int, mark: int) -> None:
        """Put a name where others are: each takes the place of the next, until one is free."""
        words, mask = self._at, self._mask
        at = name & mask
        for _ in range(THROWN_OUT_MAX):
            thrown, thrown_mark = words[at], words[at + 1]
            words[at], words[at + 1] = name, mark
            if not thrown:
                return
            name, mark = thrown, thrown_mark
            first = name & mask
            at = name >> HALF & mask if at == first else first
        self._homeless[name] = mark

    def _keep_homeless(self, name: int, mark: int) -> None:
        """Set or delete the mark of a name that is in neither of its homes."""
        if mark:
            self._homeless[name] = mark
        else:
            del self._homeless[name]


def _always(mark: int) -> Callable[[int], int]:
    return lambda _: mark
