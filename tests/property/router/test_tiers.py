"""Runs that go on from tier to tier, against a walk along the prompt, block by block."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.router.index import PrefixIndex
from controlplane.router.ingest import Held
from controlplane.router.policies.base import Ints
from controlplane.router.tiers import Tiers
from proto.hashing import BlockHasher, Scope, digest, pack
from proto.ids import WorkerId
from proto.kv import KvBatch, Tier
from proto.load import TierSum

WORKERS = [WorkerId(name) for name in "abc"]
STRANGER = WorkerId("z")
PROMPT = BlockHasher(b"k", Scope("m"), 1).names(range(14))
NAMES: list[int] = PROMPT.tolist()

Sets = dict[tuple[WorkerId, Tier], set[int]]

spans = st.tuples(st.integers(0, len(NAMES)), st.integers(0, len(NAMES)))
keys = st.tuples(st.sampled_from(WORKERS), st.sampled_from(Tier))
changes = st.tuples(keys, st.sampled_from(["store", "remove", "clear", "leave"]), spans)


def batch(worker: WorkerId, tier: Tier, what: str, names: list[int]) -> KvBatch:
    packed = pack(np.array(names, dtype=np.uint64))
    stored, removed = (packed, b"") if what == "store" else (b"", packed)
    return KvBatch(worker, stored, removed, what == "clear", tier)


def seats(index: PrefixIndex) -> Ints:
    for worker in WORKERS:
        index.join(worker)
    return np.array([index.seat(worker) for worker in WORKERS])


def walk(sets: Sets, worker: WorkerId) -> list[int]:
    """Blocks by tier."""
    at, blocks = 0, []
    for tier in Tier:
        first = at
        while at < len(NAMES) and NAMES[at] in sets[worker, tier]:
            at += 1
        blocks.append(at - first)
    return blocks


def summed_up(sets: Sets, worker: WorkerId) -> Held:
    gpu, *slower = [
        TierSum(tier, len(names), digest(sorted(names)))
        for tier in Tier
        for names in [sets[worker, tier]]
    ]
    return Held(gpu.blocks, gpu.digest, tuple(each for each in slower if each.blocks))


@settings(max_examples=300)
@given(st.lists(changes, max_size=30), st.integers(0, 3))
def test_what_a_worker_holds_is_read_tier_by_tier(
    history: list[tuple[tuple[WorkerId, Tier], str, tuple[int, int]]], sweeps: int
) -> None:
    tiers = Tiers()
    sets: Sets = {(worker, tier): set() for worker in WORKERS for tier in Tier}
    for worker in (*WORKERS, STRANGER):
        tiers.join(worker)
    tiers.apply(batch(STRANGER, Tier.DISK, "store", NAMES[:1]))  # so that tiers are looked at
    for (worker, tier), what, span in history:
        names = NAMES[min(span) : max(span)]
        if what == "leave":
            tiers.leave(worker)
            tiers.join(worker)
            for each in Tier:
                sets[worker, each].clear()
            continue
        tiers.apply(batch(worker, tier, what, names))
        held = set() if what == "clear" else sets[worker, tier]
        sets[worker, tier] = held | set(names) if what == "store" else held - set(names)
        if sweeps:
            tiers.sweep(sweeps)
    found = tiers.match(PROMPT, seats)
    assert found.slower is not None
    by_worker = np.vstack([found.gpu, found.slower]).T.tolist()
    assert by_worker == [walk(sets, worker) for worker in WORKERS]
    for worker in WORKERS:
        assert tiers.held(worker) == summed_up(sets, worker)
