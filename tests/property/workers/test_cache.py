"""The block cache against a model that keeps every fact in the dumbest way."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.sim.cache import BlockCache, Cleared, Removed, Stored

CAPACITY_BLOCKS = 9
PATHS = st.lists(st.integers(0, 1), min_size=1, max_size=6)


def chain(path: list[int]) -> list[int]:
    """Names of the blocks of a sequence: equal for equal beginnings, and only for those."""
    return [int("1" + "".join(map(str, path[: i + 1])), 3) for i in range(len(path))]


@dataclass
class Holder:
    """A sequence in the model: what it is called, and how far it has come."""

    number: int
    names: list[int]
    named_blocks: int = 0
    private_blocks: int = 0


@dataclass
class Model:
    """Who holds which name, and the order in which names were let go."""

    holders: dict[int, set[int]] = field(default_factory=dict)
    let_go: list[int] = field(default_factory=list)
    private_blocks: int = 0

    @property
    def used_blocks(self) -> int:
        return self.private_blocks + sum(bool(who) for who in self.holders.values())

    def hold(self, name: int, number: int) -> None:
        self.holders.setdefault(name, set()).add(number)
        if name in self.let_go:
            self.let_go.remove(name)

    def take_private(self, blocks: int) -> list[int]:
        """Returns the names evicted for it."""
        evicted = []
        for _ in range(blocks):
            if self.private_blocks + len(self.holders) == CAPACITY_BLOCKS:
                name = self.let_go.pop(0)
                del self.holders[name]
                evicted.append(name)
            self.private_blocks += 1
        return evicted

    def release(self, holder: Holder) -> None:
        for name in reversed(holder.names[: holder.named_blocks]):
            self.holders[name].remove(holder.number)
            if not self.holders[name]:
                self.let_go.append(name)
        self.private_blocks -= holder.private_blocks


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = BlockCache(CAPACITY_BLOCKS)
        self.model = Model()
        self.active: list[Holder] = []
        self.count = 0
        self.announced: set[int] = set()
        self.removed: list[int] = []

    @rule(path=PATHS, extra=st.integers(0, 2))
    def admit(self, path: list[int], extra: int) -> None:
        names = chain(path)
        limit = len(names) - 1 + extra
        hits = self.cache.match(names, limit)
        expected = 0
        while expected < min(limit, len(names)) and names[expected] in self.model.holders:
            expected += 1
        assert hits == expected

        idle = sum(not self.model.holders[name] for name in names[:hits])
        assert self.cache.idle_in(names, hits) == idle
        fresh = len(names) + extra - hits
        if fresh + idle > self.cache.available_blocks:
            return
        self.count += 1
        holder = Holder(self.count, names, hits, fresh)
        self.cache.acquire(names, hits)
        for name in names[:hits]:
            self.model.hold(name, holder.number)
        self._allocate(fresh)
        self.active.append(holder)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.active))
        end = data.draw(st.integers(holder.named_blocks, len(holder.names)))
        if end == holder.named_blocks:
            return
        self.cache.commit(holder.names, holder.named_blocks, end, holder.number)
        for name in holder.names[holder.named_blocks : end]:
            self.model.hold(name, holder.number)
        self.model.private_blocks -= end - holder.named_blocks
        holder.private_blocks -= end - holder.named_blocks
        holder.named_blocks = end

    @precondition(lambda self: self.active and self.cache.available_blocks)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.active))
        blocks = data.draw(st.integers(1, self.cache.available_blocks))
        self._allocate(blocks)
        holder.private_blocks += blocks

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.active))
        self.active.remove(holder)
        self.cache.release(holder.names, holder.named_blocks, holder.private_blocks)
        self.model.release(holder)

    @rule()
    def clear(self) -> None:
        cleared = self.cache.clear()
        assert cleared == (self.model.used_blocks == 0)
        if cleared:
            self.model = Model()

    def _allocate(self, blocks: int) -> None:
        self._listen()
        self.removed.clear()
        self.cache.allocate(blocks)
        evicted = self.model.take_private(blocks)
        self._listen()
        assert self.removed == evicted, "not the least recently used ones, in order"

    def _listen(self) -> None:
        """Follow the events as a router would."""
        for event in self.cache.take_events():
            match event:
                case Stored(parent, names, _, first_block):
                    assert (parent is None) == (first_block == 0)
                    assert parent is None or parent in self.announced, "parents come first"
                    assert self.announced.isdisjoint(names)
                    self.announced.update(names)
                case Removed(names):
                    for name in names:
                        self.announced.remove(name)
                        followers = {3 * name, 3 * name + 1}
                        assert self.announced.isdisjoint(followers), "a hole in a prefix"
                    self.removed += names
                case Cleared():
                    self.announced.clear()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.cache.used_blocks == self.model.used_blocks
        assert set(self.cache.names()) == set(self.model.holders)
        assert self.cache.cached_blocks == len(self.model.holders)

    @invariant()
    def every_block_is_counted_once(self) -> None:
        cache = self.cache
        assert 0 <= cache.unused_blocks <= cache.available_blocks
        assert cache.used_blocks + cache.available_blocks == CAPACITY_BLOCKS
        idle = len(self.model.let_go)
        assert cache.available_blocks == cache.unused_blocks + idle

    @invariant()
    def cached_blocks_form_prefixes(self) -> None:
        cached = set(self.cache.names())
        assert all(name < 9 or name // 3 in cached for name in cached)

    @invariant()
    def events_add_up_to_the_cache(self) -> None:
        self._listen()
        assert self.announced == set(self.cache.names())


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
