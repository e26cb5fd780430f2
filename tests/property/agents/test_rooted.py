"""Rooted blocks against a walk to the root, for every block after every step."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agents.rooted import Rooted

PARENTS: dict[int, int | None] = {block: block // 3 or None for block in range(1, 40)}
"""A tree in which each block has up to three followers."""
blocks = st.sampled_from(sorted(PARENTS))


class RootedMachine(RuleBasedStateMachine):
    """Blocks come and go in any order, and are told of more often than they come."""

    def __init__(self) -> None:
        super().__init__()
        self.rooted = Rooted()
        self.live: set[int] = set()
        self.told: set[int] = set()
        """What a reader of the answers holds."""

    def is_rooted(self, block: int) -> bool:
        parent = PARENTS[block]
        return block in self.live and (parent is None or self.is_rooted(parent))

    @rule(block=blocks)
    def add(self, block: int) -> None:
        self.live.add(block)
        for each in self.rooted.add(block, PARENTS[block]):
            assert each not in self.told
            self.told.add(int(each))
            self.closed()

    @rule(block=blocks)
    def discard(self, block: int) -> None:
        if block in self.live:
            self.live.remove(block)
            for each in self.rooted.discard(block, PARENTS[block]):
                self.told.remove(int(each))
                self.closed()

    @rule()
    def clear(self) -> None:
        self.rooted.clear()
        self.live.clear()
        self.told.clear()

    def closed(self) -> None:
        assert all(PARENTS[block] in {None, *self.told} for block in self.told)

    @invariant()
    def agrees(self) -> None:
        wanted = {block for block in PARENTS if self.is_rooted(block)}
        assert self.told == wanted == {block for block in PARENTS if block in self.rooted}


TestRooted = RootedMachine.TestCase
TestRooted.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
