"""The table of names against a dict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controlplane.router.blocktable import BlockTable
from proto.hashing import digest

names_of_few_buckets = st.integers(1, 12).map(lambda i: i << 2 | 1)
"""They all fall into one bucket of a table of four, and into few after it has doubled."""
names = st.lists(st.one_of(st.integers(1, 40), names_of_few_buckets), max_size=30)


class TableMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable(buckets=4)
        self.naive: dict[int, int] = {}

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

    @rule(room=st.integers(0, 60))
    def reserve(self, room: int) -> None:
        self.table.reserve(room)

    @rule(names=names)
    def look_up(self, names: Sequence[int]) -> None:
        expected = [self.naive.get(name, 0) for name in names]
        assert self.table.marks(np.array(names, dtype=np.uint64)).tolist() == expected
        assert [self.table.mark(name) for name in names] == expected

    @rule(marks=st.sets(st.integers(1, 4), min_size=1), step=st.integers(1, 5))
    def find_marked(self, marks: set[int], step: int) -> None:
        found = [
            name
            for first in range(0, self.table.buckets, step)
            for name in self.table.marked(np.array(sorted(marks), dtype=np.uint64), first, step)
        ]
        assert sorted(found) == sorted(n for n, mark in self.naive.items() if mark in marks)

    @invariant()
    def has_as_many_names(self) -> None:
        assert len(self.table) == len(self.naive)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
