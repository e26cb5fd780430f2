"""The paged KV cache: a pool of blocks, found again by the name of their content.

A block is in one of four states, and the pool only counts where no name is needed:

- *unused*: nothing in it;
- *private*: held by one sequence; partial, not computed yet, or without a name;
- *held*: full, computed, named, and referenced by at least one sequence;
- *idle*: named and referenced by nobody: a cache hit for whoever asks, or the next to be evicted.

Names are chained hashes made by the caller: equal names mean equal content and equal past. So
whoever holds a block holds all blocks before it, a sequence lets go of its last block first, and
the least recently used block never has a cached successor. Hence two invariants that make
look-ups a binary search instead of a walk: cached blocks of a sequence form a prefix of it, and
holders never increase along it.

A block computed twice is kept once: the second holder joins the first and its copy is freed, as
SGLang's radix cache does. (vLLM keeps both copies and announces both.)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

RequestId = int | str


class Stored(NamedTuple):
    """Blocks became findable: `names`, in order, follow `parent` (None: they begin a sequence).

    `owner` computed them as its blocks `first_block`, `first_block` + 1, ...
    """

    parent: int | None
    names: tuple[int, ...]
    owner: RequestId
    first_block: int


class Removed(NamedTuple):
    """Blocks were evicted, least recently used first."""

    names: tuple[int, ...]


class Cleared(NamedTuple):
    """Every block was forgotten."""


CacheEvent = Stored | Removed | Cleared


class BlockCache:
    """A pool of `capacity_blocks`. Breaking a precondition is a bug of the caller: it asserts."""

    def __init__(self, capacity_blocks: int) -> None:
        assert capacity_blocks > 0
        self.capacity_blocks = capacity_blocks
        self._holders: dict[int, int] = {}
        """Every named block and how many sequences reference it; 0 for idle ones."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Idle blocks, least recently used first."""
        self._private_blocks = 0
        self._events: list[CacheEvent] = []

    @property
    def cached_blocks(self) -> int:
        """Named blocks, held or idle: what the events add up to."""
        return len(self._holders)

    @property
    def used_blocks(self) -> int:
        """Blocks that some sequence needs now: private and held ones."""
        return self._private_blocks + len(self._holders) - len(self._idle)

    @property
    def unused_blocks(self) -> int:
        """Blocks that can be taken without evicting any."""
        return self.capacity_blocks - self._private_blocks - len(self._holders)

    @property
    def available_blocks(self) -> int:
        """Blocks that can be taken: unused and idle ones."""
        return self.capacity_blocks - self.used_blocks

    def names(self) -> list[int]:
        """All cached names, in no particular order."""
        return list(self._holders)

    def by_use(self) -> list[int]:
        """All cached names, least recently used first; those in use come last. Whatever follows a
        block comes before it."""
        held = [name for name, holders in self._holders.items() if holders]
        return [*self._idle, *reversed(held)]

    def match(self, names: Sequence[int], limit_blocks: int) -> int:
        """How many leading blocks are cached, of the first `limit_blocks` of `names`."""
        return self._first_missing(names, 0, min(limit_blocks, len(names)))

    def idle_in(self, names: Sequence[int], matched_blocks: int) -> int:
        """How many of the first `matched_blocks`, all cached, are idle: acquiring them costs so
        many of the available blocks."""
        holders = self._holders
        first_idle = bisect_left(
            range(matched_blocks), True, key=lambda index: not holders[names[index]]
        )
        return matched_blocks - first_idle

    def acquire(self, names: Sequence[int], matched_blocks: int) -> None:
        """Reference the first `matched_blocks` of `names`, all cached."""
        self._hold(names[:matched_blocks])

    def allocate(self, blocks: int) -> None:
        """Take private blocks, at most the available ones; evicts idle blocks where none is
        unused."""
        assert blocks <= self.available_blocks
        missing = blocks - self.unused_blocks
        if missing > 0:
            holders, idle = self._holders, self._idle
            evicted = tuple(idle.popitem(last=False)[0] for _ in range(missing))
            for name in evicted:
                del holders[name]
            self._events.append(Removed(evicted))
        self._private_blocks += blocks

    def commit(self, names: Sequence[int], start: int, end: int, owner: RequestId) -> None:
        """Blocks `start` to `end` of a sequence, private until now, are full and computed.

        The sequence holds all blocks before `start`. Those not cached yet are announced.
        """
        assert end - start <= self._private_blocks
        fresh_start = self._first_missing(names, start, end)
        self._hold(names[start:fresh_start])
        self._private_blocks -= end - start
        if fresh_start < end:
            fresh = tuple(names[fresh_start:end])
            self._holders.update(dict.fromkeys(fresh, 1))
            parent = names[fresh_start - 1] if fresh_start else None
            self._events.append(Stored(parent, fresh, owner, fresh_start))

    def release(self, names: Sequence[int], named_blocks: int, private_blocks: int) -> None:
        """Let go of the first `named_blocks` of `names`, the last one first, and of private
        ones."""
        assert private_blocks <= self._private_blocks
        holders, idle = self._holders, self._idle
        for name in reversed(names[:named_blocks]):
            left = holders[name] - 1
            holders[name] = left
            if not left:
                idle[name] = None
        self._private_blocks -= private_blocks

    def clear(self) -> bool:
        """Forget everything; refused, as by vLLM, while any block is in use."""
        if self.used_blocks:
            return False
        self._holders.clear()
        self._idle.clear()
        self._events.append(Cleared())
        return True

    def take_events(self) -> list[CacheEvent]:
        """What happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def _first_missing(self, names: Sequence[int], start: int, end: int) -> int:
        holders = self._holders
        found = bisect_left(range(start, end), True, key=lambda index: names[index] not in holders)
        return start + found

    def _hold(self, names: Sequence[int]) -> None:
        holders, idle = self._holders, self._idle
        for name in names:
            count = holders[name]
            if not count:
                del idle[name]
            holders[name] = count + 1
