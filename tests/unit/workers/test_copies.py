"""Cached blocks that go from engine to engine for no request, without any bytes."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from workers.sim.cache import BlockCache, Removed, Stored
from workers.sim.copies import Copies
from workers.sim.library import WIRE_MASK, Library

BLOCK = 4


class Made:
    """A sequence whose blocks were announced."""

    def __init__(self, tokens: Sequence[int], salt: str | None = None) -> None:
        self.tokens = array("I", tokens)
        self.cache_salt = salt


def cached(*chains: Sequence[int], blocks: int = 40) -> BlockCache:
    cache = BlockCache(blocks)
    for chain in chains:
        here = cache.match(chain, len(chain))
        cache.acquire(chain, here)
        cache.allocate(len(chain) - here)
        cache.commit(chain, here, len(chain), "r")
        cache.release(chain, len(chain), 0)
    cache.take_events()
    return cache


def test_what_is_offered_is_held_until_it_is_let_go() -> None:
    cache = cached([1, 2, 3])
    copies = Copies(cache)
    assert copies.offer("a", [1, 2, 3]) == 3
    assert cache.used_blocks == 3
    assert copies.release("a") and not copies.release("a")
    assert cache.used_blocks == 0
    assert copies.offer("b", [7, 8]) == 0 and not copies.release("b")


def test_what_has_come_is_cached_and_idle_and_announced_with_its_parent() -> None:
    cache = cached([1, 2])
    copies = Copies(cache)
    assert copies.accept("a", [1, 2, 3, 4]) == 2
    assert cache.used_blocks == 4 and cache.match([1, 2, 3], 3) == 2
    copies.landed("a")
    assert (cache.used_blocks, cache.cached_blocks) == (0, 4)
    assert cache.take_events() == [Stored(2, (3, 4), "a", 2)]
    # The first blocks of a chain are the last to go.
    assert cache.by_use() == [4, 3, 2, 1]


def test_what_does_not_come_leaves_nothing() -> None:
    cache = cached([1, 2])
    copies = Copies(cache)
    copies.accept("a", [1, 2, 3, 4])
    copies.lost("a")
    assert (cache.used_blocks, cache.cached_blocks, cache.unused_blocks) == (0, 2, 38)
    assert cache.take_events() == []


def test_a_request_that_was_faster_keeps_its_blocks() -> None:
    cache = cached([1, 2])
    copies = Copies(cache)
    copies.accept("a", [1, 2, 3])
    cache.acquire([1, 2], 2)
    cache.allocate(1)
    cache.commit([1, 2, 3], 2, 3, "r")
    copies.landed("a")
    cache.release([1, 2, 3], 3, 0)
    assert (cache.used_blocks, cache.cached_blocks, cache.unused_blocks) == (0, 3, 37)
    assert cache.take_events() == [Stored(2, (3,), "r", 2)]


def test_no_room_is_made_at_the_cost_of_who_computes() -> None:
    cache = cached([1, 2, 3, 4], blocks=10)
    copies = Copies(cache)
    assert copies.accept("a", list(range(10, 20))) is None
    assert cache.used_blocks == 0
    assert copies.accept("b", list(range(10, 19))) == 0  # a tenth is left, and old ones went
    assert cache.take_events() == [Removed((4, 3, 2))]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_a_library_tells_a_chain_by_the_name_that_events_have(as_bytes: bool) -> None:
    library, base = Library(BLOCK), 5 << 64
    made = Made(range(3 * BLOCK), "salt")
    library.learn([Stored(None, (base + 1, base + 2, base + 3), "r", 0)], lambda _: made)
    name = base + 2
    told = name.to_bytes(32, "big").hex() if as_bytes else name & WIRE_MASK
    chain = library.chain(told)
    assert chain is not None
    assert chain.names == [base + 1, base + 2]
    assert list(chain.tokens) == list(range(2 * BLOCK)) and chain.cache_salt == "salt"
    library.learn([Removed((base + 3, base + 2))], lambda _: made)
    assert library.chain(told) is None and len(library) == 1


def test_leaves_are_told_last_used_first_each_with_its_length() -> None:
    library = Library(1)
    stem, other = Made([1, 2, 3, 4]), Made([9])
    library.learn([Stored(None, (1, 2, 3), "r", 0), Stored(2, (4,), "r", 2)], lambda _: stem)
    library.learn([Stored(None, (9,), "s", 0)], lambda _: other)
    by_use = [4, 9, 3, 2, 1]  # 4 was used long ago, though what comes before it was not
    assert library.leaves(by_use, 10) == [(3, 3), (9, 1), (4, 3)]
    assert library.leaves(by_use, 1) == [(3, 3)]
