"""The names of all blocks and their marks, in a table that grows without a pause.

At `LOAD_MAX` a table of twice the size is made ready, and then used. From then on each name lives
in one of the two: a write first brings the names it is about from the old one to the new one, and
with them a slice of all the others, so that the old table is empty before the new one is full.

A name costs 37 to 74 bytes, and up to 112 while two tables are there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from controlplane.router.cuckoo import PAGE_CELLS, Cuckoo, Moved
from proto.hashing import Words

LOAD_MAX = 0.43
"""From here on a table of twice the size is made ready."""
LOAD_LIMIT = 0.48
"""By here it is in use, ready or not; a cuckoo's table is in trouble at half."""
FIRST_CELLS = 4_096
TOUCHED_PAGES = 512
NAMES_A_TOUCHED_PAGE = 4
"""Of a new table, made ready by one write; or, by a large one, a page for so many names. Memory
that has never been touched comes a page at a time, at 1 us or more a page: too slow to be left to
the write that needs it."""
SLICE_CELLS = 16_384
"""Moved by one write: some 7,000 names, half a millisecond."""
SLICE_CELLS_A_NAME = 4
"""Or, by a large write, so many for each name: then the old table is empty by the time that half as
many names have been added as there were."""


class BlockTable:
    """A `Cuckoo` that makes room for itself."""

    def __init__(self, cells: int = FIRST_CELLS) -> None:
        """`cells` to begin with: a power of two."""
        self._now = Cuckoo(cells)
        self._next: Cuckoo | None = None
        """What is made ready."""
        self._old: Cuckoo | None = None
        """What is being left; what has been moved is not in it any longer."""
        self._done_cells = 0
        """Of the next table, or of the old one, from the first on."""

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
        self._make_room(len(names))
        if self._old is not None:
            self._bring(np.unique(np.array(names, dtype=np.uint64)), self._old)
        return self._now.rewrite(names, successor)

    def update(self, names: Words, decide: Callable[[Words], Words]) -> None:
        """As `Cuckoo.update`; makes room where it is needed."""
        self._make_room(len(names))
        if self._old is not None:
            self._bring(names, self._old)
        self._now.update(names, decide)

    def settle(self, names: int = 0) -> bool:
        """Go on with growing, by a slice that is due to a write of so many names; True if more is
        to be done."""
        if self._next is not None:
            pages = max(TOUCHED_PAGES, names // NAMES_A_TOUCHED_PAGE)
            self._touch(self._next, pages * PAGE_CELLS)
        elif self._old is not None:
            self._leave(self._old, max(SLICE_CELLS, SLICE_CELLS_A_NAME * names))
        return self._next is not None or self._old is not None

    def marked(self, marks: NDArray[np.uint64], first_cell: int, cells: int) -> list[int]:
        """As `Cuckoo.marked`. Nothing may be left to settle."""
        assert self._old is None
        return self._now.marked(marks, first_cell, cells)

    def _make_room(self, names: int) -> None:
        """For so many more; goes on with a growth that has begun."""
        names_then = len(self) + names
        if names_then > self._now.cells * LOAD_MAX and self._next is None:
            # Only a batch as large as the whole table comes before the last growth is done.
            if self._old is not None:
                self._leave(self._old, self._old.cells)
            cells = 2 * self._now.cells
            while names_then > cells * LOAD_MAX:
                cells *= 2
            self._next, self._done_cells = Cuckoo(cells), 0
        if names_then > self._now.cells * LOAD_LIMIT and self._next is not None:
            self._touch(self._next, self._next.cells)
        self.settle(names)

    def _touch(self, table: Cuckoo, cells: int) -> None:
        """Make more of a new table ready; use it once all of it is."""
        table.touch(self._done_cells, cells)
        self._done_cells += cells
        if self._done_cells >= table.cells:
            self._old, self._now, self._next = self._now, table, None
            self._done_cells = 0

    def _leave(self, table: Cuckoo, cells: int) -> None:
        """Move more out of an old table; drop it once it is empty."""
        pairs = table.empty(self._done_cells, cells)
        self._now.put(pairs[:, 0], pairs[:, 1])
        self._done_cells += cells
        if self._done_cells >= table.cells:
            self._old = None

    def _bring(self, names: Words, old: Cuckoo) -> None:
        """See to it that none of these names is in the old table."""
        pairs = old.pop(names)
        self._now.put(pairs[:, 0], pairs[:, 1])
