"""Where along a prompt its holders change, found by halving instead of reading.

Holders only become fewer along a prompt, so where they are the same at two places nothing changes
between. A prompt whose holders share one depth takes a dozen look-ups, however long it is; where
depths are many, reading the whole stretch at once is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from proto.hashing import Words

SPLITS_MAX = 4
"""How often both halves of a stretch may have a change in them, before all of it is read."""

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


def runs(names: Words, first: int, table: Marks, same: Callable[[int, int], bool]) -> Runs:
    """The runs of a prompt of at least one block, the mark of which is `first`.

    `same` says whether two different marks stand for equal holders.
    """
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
                # The first split was of all that there is; to its left, only `low` is known.
                return _read(names, 0 if edges else low, stretches[1][1], table)
            else:
                splits += 1
                stretches.append((middle, high, mark, mark_high))
                high, mark_high = middle, mark
        edges.append((high, mark_high))
    edges.sort()
    bounds = [0, *[place for place, _ in edges], len(names)]
    return Runs(np.array(bounds), np.array([first, *[mark for _, mark in edges]]))


def _read(names: Words, low: int, high: int, table: Marks) -> Runs:
    """All changes are after `low`, and not after `high`."""
    marks = table.marks(names[low : high + 1]).view(np.int64)
    changes = np.flatnonzero(marks[1:] != marks[:-1])
    bounds = np.empty(len(changes) + 2, dtype=np.int64)
    bounds[0], bounds[-1] = 0, len(names)
    bounds[1:-1] = changes
    bounds[1:-1] += low + 1
    of_runs = np.empty(len(changes) + 1, dtype=np.int64)
    of_runs[0] = marks[0]
    of_runs[1:] = marks[changes + 1]
    return Runs(bounds, of_runs)
