"""The index against a naive one: a set of names a worker.

What workers hold is prefix-closed: paths in a tree, with all that comes before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from controlplane.router.index import PrefixIndex
from proto.hashing import BlockHasher, Scope, digest, pack
from proto.ids import WorkerId

WORKERS = [WorkerId(f"w{i}") for i in range(70)]
"""More than one word of a row has bits for."""
workers = st.one_of(st.sampled_from(WORKERS[:4]), st.sampled_from(WORKERS))
paths = st.lists(st.integers(0, 1), max_size=12).map(tuple)

Path = tuple[int, ...]

_hasher = BlockHasher(b"a secret of tests", Scope("tiny"), block_tokens=1)
_path_of: dict[int, Path] = {}
_crowded: dict[int, int] = {}


@cache
def names_of(path: Path) -> list[int]:
    """One name a block. Every third block shares its two homes with many others."""
    names: list[int] = _hasher.names(path).tolist()
    for k, name in enumerate(names):
        if name % 3 == 0:
            number = _crowded.setdefault(name, len(_crowded) + 1)
            names[k] = number << 46 | 2 << 32 | number << 14 | 4
        _path_of[names[k]] = path[: k + 1]
    return names


def behind(path: Path, held: set[int]) -> set[int]:
    """The last block of a path and what follows it."""
    return {name for name in held if _path_of.get(name, ())[: len(path)] == path}


LONG = [names_of((stem,) * 2_500) for stem in (2, 3, 4)]
"""Chains that make the table grow."""
long_chains = st.integers(0, len(LONG) - 1)


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

    @rule()
    def join_all(self) -> None:
        for worker in WORKERS:
            self.join(worker)

    @rule(worker=workers)
    def leave(self, worker: WorkerId) -> None:
        self.index.leave(worker)
        self.naive.pop(worker, None)

    @rule(worker=workers, path=paths)
    def store(self, worker: WorkerId, path: Path) -> None:
        """All of it, also what is held already."""
        if worker in self.naive:
            self.tell(worker, stored=names_of(path))
            self.naive[worker].update(names_of(path))

    def tell(
        self, worker: WorkerId, *, removed: Sequence[int] = (), stored: Sequence[int] = ()
    ) -> None:
        packed = [pack(np.array(names, dtype=np.uint64)) for names in (removed, stored)]
        self.index.apply(worker, False, *packed)

    @rule(path=paths)
    def store_everywhere(self, path: Path) -> None:
        for depth, worker in enumerate(sorted(self.naive)):
            self.store(worker, path[: depth % 13])

    @rule(worker=workers, which=long_chains, piece=st.integers(50, 3_000))
    def store_much(self, worker: WorkerId, which: int, piece: int) -> None:
        """Enough for the table to grow, over several writes."""
        chain = LONG[which]
        for start in range(0, len(chain), piece):
            if worker in self.naive:
                self.tell(worker, stored=chain[start : start + piece])
                self.naive[worker].update(chain[start : start + piece])

    @rule(worker=workers, path=paths, more=paths)
    def remove(self, worker: WorkerId, path: Path, more: Path) -> None:
        """A block and all that follow it, and some that are not held."""
        held = self.naive.get(worker, set())
        gone = behind(path, held) if path else set()
        absent = [name for name in names_of(more) if name not in held]
        if worker in self.naive:
            self.tell(worker, removed=[*gone, *absent])
            held -= gone

    @rule(worker=workers, which=long_chains, left=st.integers(0, 2_500))
    def remove_much(self, worker: WorkerId, which: int, left: int) -> None:
        if worker in self.naive:
            self.tell(worker, removed=LONG[which][left:])
            self.naive[worker].difference_update(LONG[which][left:])

    @rule(worker=workers)
    def clear(self, worker: WorkerId) -> None:
        self.index.clear(worker)
        if worker in self.naive:
            self.naive[worker].clear()

    @rule(entries=st.integers(1, 3_000))
    def sweep(self, entries: int) -> None:
        self.index.sweep(entries)

    @rule(path=paths, tail=st.integers(0, 3))
    def match(self, path: Path, tail: int) -> None:
        self.match_exactly(names_of((*path, *(9,) * tail)))

    @rule(which=long_chains, length=st.integers(1, 2_500), tail=paths)
    def match_long(self, which: int, length: int, tail: Path) -> None:
        self.match_exactly([*LONG[which][:length], *names_of(tail)])

    def match_exactly(self, prompt: list[int]) -> None:
        wanted = {}
        for worker, held in self.naive.items():
            missing = (i for i, name in enumerate(prompt) if name not in held)
            if depth := next(missing, len(prompt)):
                wanted[worker] = depth
        depths = self.index.match(np.array(prompt, dtype=np.uint64))
        assert self.index.by_worker(depths) == wanted
        assert depths.sum() == sum(wanted.values()), "an empty seat has a depth"

    @rule()
    def ask(self) -> None:
        """Only now and then: many changes are to be made at once."""
        for worker, held in self.naive.items():
            assert self.index.count(worker) == len(held)
            assert self.index.digest(worker) == digest(tuple(held))

    def teardown(self) -> None:
        """Swept to the end, nothing is left of what nobody holds."""
        self.ask()
        while self.index.sweep(500):
            pass
        assert len(self.index) == len(set().union(*self.naive.values()))


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
