"""The names of all blocks and their marks, in a table that grows without a pause.

At `LOAD_MAX` a table of twice the size is begun. From then on each name lives in one of the two:
a write first brings the names it is about from the old one to the new one, and with them the next
slice of all the others, so that the old table is empty long before the new one is full.

A name costs 36 to 71 bytes, and for the moment in which an old table is about to go up to 107.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.router.cuckoo import Cuckoo, Moved
from proto.hashing import Words

LOAD_MAX = 0.45
FIRST_CELLS = 4_096
SLICE_CELLS = 4_096
"""Moved by one write: some 200 us."""
SLICE_CELLS_A_NAME = 8
"""Or, by a large write, so many for each name. Of the cells of the old table not quite half are
in use: it is empty by the time that as many as a quarter of its names have been added."""


class BlockTable:
    """A `Cuckoo` that makes room for itself."""

    def __init__(self, cells: int = FIRST_CELLS) -> None:
        """`cells` to begin with: a power of two."""
        self._now = Cuckoo(cells)
        self._old: Cuckoo | None = None
        self._left = 0
        """Cells of the old table that have been emptied, from the first on."""

    def __len__(self) -> int:
        """How many names are there."""
        return len(self._now) + (0 if self._old is None else len(self._old))

    @property
    def cells(self) -> int:
        """Of the table that everything is in, or is being moved to."""
        return self._now.cells

    def mark(self, name: int) -> int:
        """The mark of one name, 0 if it is not there."""
        mark = self._now.mark(name)
        return mark if mark or self._old is None else self._old.mark(name)

    def marks(self, names: Words) -> Words:
        """The mark of each name."""
        marks = self._now.marks(names)
        if self._old is not None:
            missing = np.flatnonzero(marks == 0)
            marks[missing] = self._old.marks(names[missing])
        return marks

    def rewrite(self, names: Sequence[int], successor: Callable[[int], int]) -> list[Moved]:
        """As `Cuckoo.rewrite`; makes room where it is needed."""
        if len(self) + len(names) > self._now.cells * LOAD_MAX:
            self._begin_growth(len(names))
        if self._old is not None:
            self._now.put(self._old.pop(names))
            self.settle(max(SLICE_CELLS, SLICE_CELLS_A_NAME * len(names)))
        return self._now.rewrite(names, successor)

    def settle(self, cells: int) -> bool:
        """Go on with growing, by a slice of so many cells; True if more is to be done."""
        if self._old is None:
            return False
        self._now.put(self._old.empty(self._left, cells))
        self._left += cells
        if self._left >= self._old.cells:
            self._old = None
        return self._old is not None

    def marked(self, marks: NDArray[np.uint64], first_cell: int, cells: int) -> list[int]:
        """As `Cuckoo.marked`. Nothing may be left to settle."""
        assert self._old is None
        return self._now.marked(marks, first_cell, cells)

    def _begin_growth(self, names: int) -> None:
        """Have a table with room for so many more. Only a batch as large as the whole table comes
        before the last growth is done."""
        if self._old is not None:
            self.settle(self._old.cells)
        cells = 2 * self._now.cells
        while len(self) + names > cells * LOAD_MAX:
            cells *= 2
        self._old, self._now, self._left = self._now, Cuckoo(cells), 0
