"""The index against a naive one: a set of names a worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controlplane.router.index import PrefixIndex
from proto.hashing import digest
from proto.ids import WorkerId

WORKERS = [WorkerId(f"w{i}") for i in range(5)]
workers = st.sampled_from(WORKERS)
crowded = st.integers(1, 12).map(lambda i: i << 12)
"""Names that all fall into one bucket of the index's table."""
chains = st.lists(st.one_of(st.integers(1, 30), crowded), max_size=12)


class IndexMachine(RuleBasedStateMachine):
    """Any order of joins, leaves, stores, removals, clears and sweeps."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.naive: dict[WorkerId, set[int]] = {}

    @rule(worker=workers)
    def join(self, worker: WorkerId) -> None:
        self.index.join(worker)
        self.naive.setdefault(worker, set())

    @rule(worker=workers)
    def leave(self, worker: WorkerId) -> None:
        self.index.leave(worker)
        self.naive.pop(worker, None)

    @rule(worker=workers, names=chains)
    def store(self, worker: WorkerId, names: Sequence[int]) -> None:
        if worker in self.naive:
            self.index.store(worker, names)
            self.naive[worker].update(names)

    @rule(worker=workers, first=st.integers(31, 60))
    def store_much(self, worker: WorkerId, first: int) -> None:
        """Enough for the table to grow."""
        self.store(worker, range(first, first + 1_500))

    @rule(worker=workers, names=chains)
    def remove(self, worker: WorkerId, names: Sequence[int]) -> None:
        if worker in self.naive:
            self.index.remove(worker, names)
            self.naive[worker].difference_update(names)

    @rule(worker=workers)
    def clear(self, worker: WorkerId) -> None:
        self.index.clear(worker)
        if worker in self.naive:
            self.naive[worker].clear()

    @rule(entries=st.integers(1, 300))
    def sweep(self, entries: int) -> None:
        self.index.sweep(entries)

    @rule(names=chains)
    def match(self, names: Sequence[int]) -> None:
        wanted = {}
        for worker, held in self.naive.items():
            depth = next((i for i, name in enumerate(names) if name not in held), len(names))
            if depth:
                wanted[worker] = depth
        assert self.index.match(np.array(names, dtype=np.uint64)) == wanted

    @invariant()
    def counts_and_digests_agree(self) -> None:
        for worker, held in self.naive.items():
            assert self.index.count(worker) == len(held)
            assert self.index.digest(worker) == digest(sorted(held))

    def teardown(self) -> None:
        """Swept to the end, nothing is left of what nobody holds."""
        while self.index.sweep(500):
            pass
        assert len(self.index) == len(set().union(*self.naive.values()))


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
