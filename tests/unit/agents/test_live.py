from __future__ import annotations

from agents.live import Change, LiveSet
from proto.hashing import digest
from proto.kv import Tier


def plain(change: Change) -> tuple[set[int], set[int], bool]:
    return set(change.stored.tolist()), set(change.removed.tolist()), change.cleared


def taken(live: LiveSet) -> tuple[set[int], set[int], bool]:
    """Of the GPU tier, which must be the only one that changed."""
    changes = live.take()
    assert [change.tier for change in changes] in ([], [Tier.GPU])
    return plain(changes[0]) if changes else (set(), set(), False)


def test_changes_are_net() -> None:
    live = LiveSet()
    live.add(1, Tier.GPU)
    live.add(2, Tier.GPU)
    live.discard(1, Tier.GPU)
    assert taken(live) == ({2}, set(), False)
    live.discard(2, Tier.GPU)
    live.add(2, Tier.GPU)
    assert taken(live) == (set(), set(), False)
    live.discard(2, Tier.GPU)
    assert taken(live) == (set(), {2}, False)
    assert live.pending == 0


def test_a_name_is_live_while_one_of_its_blocks_is() -> None:
    live = LiveSet()
    live.add(1, Tier.GPU)
    live.add(1, Tier.GPU)
    live.discard(1, Tier.GPU)
    assert (live.blocks, taken(live)) == (1, ({1}, set(), False))
    live.discard(1, Tier.GPU)
    assert (live.blocks, taken(live)) == (0, (set(), {1}, False))


def test_a_clear_voids_what_was_pending_and_what_was_told() -> None:
    live = LiveSet()
    live.add(1, Tier.GPU)
    live.take()
    live.discard(1, Tier.GPU)
    live.add(2, Tier.GPU)
    live.clear()
    live.add(3, Tier.GPU)
    assert taken(live) == ({3}, set(), True)
    assert (live.blocks, live.digest) == (1, 3)


def test_clearing_nothing_says_nothing() -> None:
    live = LiveSet()
    live.clear()
    assert live.take() == []


def test_a_name_stored_again_after_a_clear_is_told_again() -> None:
    live = LiveSet()
    live.add(1, Tier.GPU)
    live.take()
    live.clear()
    live.add(1, Tier.GPU)
    assert taken(live) == ({1}, set(), True)


def test_digest_and_number_are_those_of_the_gpu() -> None:
    live = LiveSet()
    for name in (5, 6, 7):
        live.add(name, Tier.GPU)
    live.add(5, Tier.HOST)
    assert (live.blocks, live.digest) == (3, digest([5, 6, 7]))
    live.discard(6, Tier.GPU)
    assert (live.blocks, live.digest) == (2, digest([5, 7]))


def test_tiers_change_apart() -> None:
    live = LiveSet()
    live.add(1, Tier.GPU)
    live.add(1, Tier.HOST)
    live.discard(1, Tier.GPU)
    assert [(change.tier, plain(change)) for change in live.take()] == [
        (Tier.HOST, ({1}, set(), False))
    ]
    assert {tier: names.tolist() for tier, names in live.names()} == {Tier.GPU: [], Tier.HOST: [1]}
