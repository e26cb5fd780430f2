"""Where along a prompt its holders change, found by halving instead of reading.

Holders only become fewer along a prompt, so where they are the same at two places nothing changes
between. A prompt whose holders share one depth takes a dozen look-ups, however long it is. Where
depths are many, reading the whole stretch at once is cheaper; and as such prompts are often asked
for again, with another end, it is remembered where their holders changed: one look at both sides
of each place proves it right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words

SPLITS_MAX = 4
"""How often both halves of a stretch may have a change in them, before all of it is read."""
REMEMBERED = 256
"""Prompts with many depths, by their first block."""
REMEMBERED_PLACES = 1_024
"""Of one prompt, at most: 8 KiB."""

Places = NDArray[np.int64]


class Marks(Protocol):
    """Names and what they are marked with."""

    def mark(self, name: int) -> int: ...

    def marks(self, names: Words) -> Words: ...


class Runs(NamedTuple):
    """A prompt in runs of equal holders."""

    bounds: Places
    """0, where each run but the first begins, and the length of the prompt."""
    marks: Places
    """One a run; neighbours may differ and yet stand for equal holders."""


class Gallop:
    """Runs of prompts whose blocks are marked in `table`; `same` says whether two different marks
    stand for equal holders."""

    def __init__(self, table: Marks, same: Callable[[int, int], bool]) -> None:
        self._table = table
        self._same = same
        self._places: dict[int, Places] = {}
        """By first name: the last block before each change and the first one after it."""

    def runs(self, names: Words, first: int) -> Runs:
        """The runs of a prompt of at least one block, the mark of which is `first`."""
        places = self._places.get(names.item(0))
        remembered = None if places is None else self._prove(names, places)
        return remembered or self._halve(names, first)

    def _prove(self, names: Words, places: Places) -> Runs | None:
        """The runs, if holders change where they did."""
        inner = places[: places.searchsorted(len(names))]
        if len(inner) % 2:
            return None  # the prompt ends just before a change
        looked_at = np.empty(len(inner) + 3, dtype=np.int64)
        looked_at[0] = 0
        looked_at[1:-2] = inner
        looked_at[-2:] = len(names) - 1, len(names)
        marks = self._table.marks(names.take(looked_at[:-1])).view(np.int64)
        firsts = marks[::2]
        return None if np.count_nonzero(firsts != marks[1::2]) else Runs(looked_at[::2], firsts)

    def _halve(self, names: Words, first: int) -> Runs:
        table, same = self._table, self._same
        end = len(names) - 1
        last = table.mark(names.item(end))
        edges: list[tuple[int, int]] = []  # where a run begins, and its mark
        stretches = [(0, end, first, last)] if last != first and not same(last, first) else []
        splits = 0
        for low, high, mark_low, mark_high in stretches:
            while high - low > 1:
                middle = (low + high) >> 1
                mark = table.mark(names.item(middle))
                if mark == mark_low or same(mark, mark_low):
                    low = middle
                elif mark == mark_high or same(mark, mark_high):
                    high = middle
                elif splits == SPLITS_MAX:
                    # The first split was of all there is; to its left, only `low` is known.
                    return self._read(names, 0 if edges else low, stretches[1][1])
                else:
                    splits += 1
                    stretches.append((middle, high, mark, mark_high))
                    high, mark_high = middle, mark
            edges.append((high, mark_high))
        edges.sort()
        bounds = [0, *[place for place, _ in edges], len(names)]
        return Runs(np.array(bounds), np.array([first, *[mark for _, mark in edges]]))

    def _read(self, names: Words, low: int, high: int) -> Runs:
        """All changes are after `low`, and not after `high`."""
        marks = self._table.marks(names[low : high + 1]).view(np.int64)
        changes = np.flatnonzero(marks[1:] != marks[:-1])
        bounds = np.concatenate(((0,), changes + (low + 1), (len(names),)))
        if 2 * len(changes) <= REMEMBERED_PLACES:
            self._remember(names.item(0), bounds[1:-1])
        return Runs(bounds, np.concatenate((marks[:1], marks[changes + 1])))

    def _remember(self, first_name: int, starts: Places) -> None:
        places = np.repeat(starts, 2)
        places[::2] -= 1
        if len(self._places) >= REMEMBERED and first_name not in self._places:
            del self._places[next(iter(self._places))]
        self._places[first_name] = places
