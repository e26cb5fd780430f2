"""A hash table of a fixed size, from 64-bit block names to small numbers: each name has two homes.

A name lies in one of two cells, which its halves choose, as names are well mixed (`proto.hashing`);
who comes to find both taken throws one of the two out, to its other home (Pagh and Rodler, 2001).
So a look-up reads two places at most, a thousand look-ups are a few vector operations, and to
delete is to empty a cell. Below half full, the way of those thrown out is short; in the rare case
that it does not end, a small dict takes the last.

A cell is two words side by side, name and mark, so that both come with one cache line.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from mmap import mmap
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words

CELL_WORDS = 2
CELL_BYTES = 16
HALF = 32
"""Bits of a name that choose its first home; the others choose the second."""
THROWN_OUT_MAX = 200
FETCHED_MIN = 16
"""Names of a batch whose cells are worth fetching side by side, before one after the other is
written."""

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
        pages = mmap(-1, cells * CELL_BYTES)
        self._words = np.frombuffer(pages, dtype=np.uint64)
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

    def marks(self, names: Words) -> Words:
        """The mark of each name."""
        words, (first, second) = self._words, self._homes(names)
        at = np.where(words.take(first) == names, first, second)
        missing = words.take(at) != names
        at += 1
        marks: Words = words.take(at)
        if missing.any():
            marks[missing] = 0
            if self._homeless:
                for i in np.flatnonzero(missing).tolist():
                    marks[i] = self._homeless.get(names.item(i), 0)
        return marks

    def rewrite(self, names: Sequence[int], successor: Callable[[int], int]) -> list[Moved]:
        """Give each name the successor of its mark, 0 standing for absence on either side.

        `successor` must be a plain function of the mark; it is called once for each run of equal
        marks. Returns what became of those whose mark has changed. There must be room.
        """
        if len(names) >= FETCHED_MIN:
            self._fetch(names)
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

    def pop(self, names: Sequence[int]) -> Pairs:
        """Delete those of the names that are there; returns them with their marks."""
        marks = {name: mark for name in names if (mark := self.mark(name))}
        self.rewrite(tuple(marks), _absent)
        return np.array(tuple(marks.items()), dtype=np.uint64).reshape(-1, CELL_WORDS)

    def empty(self, first_cell: int, cells: int) -> Pairs:
        """Delete what is in a range of cells, and with the first one the homeless; returns it."""
        range_ = self._cells[first_cell : first_cell + cells]
        pairs: Pairs = range_[range_[:, 0] != 0]
        range_[:] = 0
        if not first_cell and self._homeless:
            homeless = np.array(tuple(self._homeless.items()), dtype=np.uint64)
            pairs = np.concatenate((pairs, homeless))
            self._homeless.clear()
        self._names -= len(pairs)
        return pairs

    def put(self, pairs: Pairs) -> None:
        """Add names that are not there, each one once; there must be room."""
        words = self._words
        names, marks = pairs[:, 0], pairs[:, 1]
        self._names += len(names)
        for home in range(2):
            at = self._homes(names)[home]
            vacant = words.take(at) == 0
            words[at[vacant]] = names[vacant]
            # Of several names for one cell one stays.
            placed = words.take(at) == names
            words[at[placed] + 1] = marks[placed]
            names, marks = names[~placed], marks[~placed]
        for name, mark in zip(names.tolist(), marks.tolist(), strict=True):
            self._throw_out(name, mark)

    def marked(self, marks: NDArray[np.uint64], first_cell: int, cells: int) -> list[int]:
        """Names in a range of cells, and with the first one the homeless, that bear one of these
        marks, none of which is 0."""
        range_ = self._cells[first_cell : first_cell + cells]
        names: list[int] = range_[np.isin(range_[:, 1], marks), 0].tolist()
        if not first_cell:
            names += [name for name, mark in self._homeless.items() if mark in marks]
        return names

    def _homes(self, names: Words) -> tuple[Places, Places]:
        mask = np.uint64(self._mask)
        return (names & mask).view(np.int64), (names >> np.uint64(HALF) & mask).view(np.int64)

    def _fetch(self, names: Sequence[int]) -> None:
        """Bring the cells of these names near."""
        for homes in self._homes(np.frombuffer(array("Q", names), dtype=np.uint64)):
            self._words.take(homes)

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


def _absent(mark: int) -> int:
    del mark
    return 0
