"""Cached blocks that go to another engine, or come from one, for no request that runs here. Pure.

What is offered is held until it is let go of; what is accepted has its place before its bytes come,
and is cached, and idle, when they have. A prefix that is here already is never fetched again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workers.sim.cache import BlockCache, RequestId

SPARE_SHARE = 0.1
"""Of all blocks: left to those who compute, whatever is offered."""


class _Coming(NamedTuple):
    names: Sequence[int]
    first: int
    """Of those that were not here."""


class Copies:
    """Of one engine's cache. Ids are unique among copies."""

    def __init__(self, cache: BlockCache) -> None:
        self._cache = cache
        self._offered: dict[RequestId, Sequence[int]] = {}
        self._coming: dict[RequestId, _Coming] = {}

    def offer(self, id: RequestId, names: Sequence[int]) -> int:
        """Hold as many leading blocks as are cached, and say how many; 0: none is held."""
        assert id not in self._offered
        held = self._cache.match(names, len(names))
        if held:
            self._cache.acquire(names, held)
            self._offered[id] = names[:held]
        return held

    def release(self, id: RequestId) -> bool:
        """Let go of what was offered; False if nothing was."""
        names = self._offered.pop(id, None)
        if names is None:
            return False
        self._cache.release(names, len(names), 0)
        return True

    def accept(self, id: RequestId, names: Sequence[int]) -> int | None:
        """Take places for what is missing of a chain; the first block that is. None: no room."""
        assert id not in self._coming
        cache = self._cache
        here = cache.match(names, len(names))
        taken = len(names) - here + cache.idle_in(names, here)
        if taken > cache.available_blocks - int(SPARE_SHARE * cache.capacity_blocks):
            return None
        cache.acquire(names, here)
        cache.allocate(len(names) - here)
        self._coming[id] = _Coming(names, here)
        return here

    def landed(self, id: RequestId) -> None:
        """All blocks have come: they are cached from now on."""
        names, first = self._coming.pop(id)
        self._cache.commit(names, first, len(names), id)
        self._cache.release(names, len(names), 0)

    def lost(self, id: RequestId) -> None:
        """They will not come: their places are free again, and nothing is announced."""
        names, first = self._coming.pop(id)
        self._cache.release(names, first, len(names) - first)
