"""What cached blocks were made from, so that another engine can be told. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from workers.sim.cache import CacheEvent, Cleared, Removed, RequestId, Stored
from workers.sim.request import Sequenced

WIRE_MASK = (1 << 64) - 1
"""What of a name events tell, where they tell it as a number."""


class Chain(NamedTuple):
    """A prefix: its blocks' names, the first one first, and what they were made from."""

    names: list[int]
    tokens: Sequence[int]
    cache_salt: str | None


class _Block(NamedTuple):
    parent: int | None
    tokens: array[int]
    salt: str | None


class Library:
    """Of all cached blocks, kept true by the cache's events."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._blocks: dict[int, _Block] = {}
        self._by_wire: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def learn(self, events: Iterable[CacheEvent], owner: Callable[[RequestId], Sequenced]) -> None:
        """What has happened, in order; `owner` is whose tokens they are."""
        for event in events:
            match event:
                case Stored():
                    self._store(event, owner(event.owner))
                case Removed(names):
                    for name in names:
                        del self._blocks[name]
                        self._by_wire.pop(name & WIRE_MASK, None)
                case Cleared():
                    self._blocks.clear()
                    self._by_wire.clear()

    def chain(self, told: int | str) -> Chain | None:
        """Up to the block that events call so: a number, or all of the name in hexadecimal. None
        if it is not cached."""
        name = self._by_wire.get(told) if isinstance(told, int) else int(told, 16)
        if name is None or name not in self._blocks:
            return None
        names = list(self._up(name))[::-1]
        tokens = array("I")
        for each in names:
            tokens += self._blocks[each].tokens
        return Chain(names, tokens, self._blocks[names[0]].salt)

    def leaves(self, names: Iterable[int], most: int) -> list[tuple[int, int]]:
        """The last blocks of chains, the latest of `names` first, and how many blocks each chain
        has. `names` are in the order of their use, of which a block comes after those that follow
        it."""
        covered: set[int] = set()
        found: list[int] = []
        for name in names:
            if name in covered or name not in self._blocks:
                continue
            found.append(name)
            for each in self._up(name):
                if each in covered:
                    break
                covered.add(each)
        return [(name, sum(1 for _ in self._up(name))) for name in found[: -most - 1 : -1]]

    def _up(self, name: int | None) -> Iterator[int]:
        while name is not None:
            yield name
            name = self._blocks[name].parent

    def _store(self, event: Stored, made_of: Sequenced) -> None:
        parent, size = event.parent, self._block_tokens
        for index, name in enumerate(event.names, event.first_block):
            tokens = array("I", made_of.tokens[index * size : (index + 1) * size])
            self._blocks[name] = _Block(parent, tokens, made_of.cache_salt)
            self._by_wire[name & WIRE_MASK] = name
            parent = name
