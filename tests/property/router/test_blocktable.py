"""The table of names against a dict, while it grows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlplane.router import blocktable
from controlplane.router.blocktable import BlockTable
from proto.hashing import Words, digest

names_of_two_cells = st.integers(1, 12).map(lambda i: i << 40 | 8 << 32 | i << 9 | 12)
"""In a table of 256 cells they all have the same two homes; as it grows, more and more."""
spread = st.integers(1, 400).map(lambda i: i * 0x9E3779B97F4A7C15 & (1 << 64) - 1)
one = st.one_of(spread, names_of_two_cells)
names = st.lists(one, max_size=40)


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable(cells=8)
        self.naive: dict[int, int] = {}
        self.slices = (blocktable.SLICE_CELLS, blocktable.SLICE_CELLS_A_NAME)

    @initialize(cells=st.integers(1, 8))
    def in_small_slices(self, cells: int) -> None:
        """A growth goes on for many steps."""
        blocktable.SLICE_CELLS, blocktable.SLICE_CELLS_A_NAME = cells, 4

    def teardown(self) -> None:
        blocktable.SLICE_CELLS, blocktable.SLICE_CELLS_A_NAME = self.slices

    @rule(names=names, turn=st.integers(0, 4), keep=st.booleans())
    def rewrite(self, names: Sequence[int], turn: int, keep: bool) -> None:
        """A successor that moves some marks, keeps others and deletes some."""

        def successor(mark: int) -> int:
            return mark if keep and mark % 2 else (mark + turn) % 5

        moved = self.table.rewrite(names, successor)
        changed: dict[tuple[int, int], list[int]] = {}
        for name in names:
            old = self.naive.get(name, 0)
            new = successor(old)
            if new:
                self.naive[name] = new
            else:
                self.naive.pop(name, None)
            if new != old:
                changed.setdefault((old, new), []).append(name)
        told: dict[tuple[int, int], list[int]] = {}
        for move in moved:
            told.setdefault((move.old, move.new), [0, 0])
            told[move.old, move.new][0] += move.names
            told[move.old, move.new][1] ^= move.digest
        assert told == {key: [len(each), digest(each)] for key, each in changed.items()}

    @rule(names=st.lists(one, unique=True, min_size=1, max_size=40), data=st.data())
    def update(self, names: Sequence[int], data: st.DataObject) -> None:
        new = data.draw(st.lists(st.integers(0, 4), min_size=len(names), max_size=len(names)))

        def decide(old: Words) -> Words:
            assert old.tolist() == [self.naive.get(name, 0) for name in names]
            return np.array(new, dtype=np.uint64)

        self.table.update(np.array(names, dtype=np.uint64), decide)
        self.naive.update(zip(names, new, strict=True))
        self.naive = {name: mark for name, mark in self.naive.items() if mark}

    @rule(names=st.integers(0, 40))
    def settle(self, names: int) -> None:
        self.table.settle(names)

    @rule(names=names)
    def look_up(self, names: Sequence[int]) -> None:
        expected = [self.naive.get(name, 0) for name in names]
        assert self.table.marks(np.array(names, dtype=np.uint64)).tolist() == expected
        assert [self.table.mark(name) for name in names] == expected

    @rule(marks=st.sets(st.integers(1, 4), min_size=1), step=st.integers(1, 50))
    def find_marked(self, marks: set[int], step: int) -> None:
        while self.table.settle():
            pass
        found = [
            name
            for first in range(0, self.table.cells, step)
            for name in self.table.marked(np.array(sorted(marks), dtype=np.uint64), first, step)
        ]
        assert sorted(found) == sorted(n for n, mark in self.naive.items() if mark in marks)

    @invariant()
    def has_as_many_names(self) -> None:
        assert len(self.table) == len(self.naive)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
