"""An agent as its readers know it: a set of blocks, and the numbers it is told under."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane.router.ingest import Held
from proto.hashing import digest
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, Tier
from proto.load import LoadReport, TierSum

CHUNK_NAMES = 5

Word = tuple[int, int, KvBatch]
"""Incarnation, sequence and what was said."""


def packed(names: Iterable[int]) -> bytes:
    return b"".join(name.to_bytes(8, "little") for name in sorted(names))


class NumberedAgent:
    """The truth, at every number so far."""

    def __init__(self, worker: WorkerId) -> None:
        self.worker = worker
        self.incarnation, self.sequence = 1, 0
        self.tiers: dict[Tier, set[int]] = {tier: set() for tier in Tier}
        self.past = {(1, 0): self.summed_up()}

    def restart(self) -> None:
        self.incarnation, self.sequence = self.incarnation + 1, 0
        for held in self.tiers.values():
            held.clear()
        self._remember()

    def change(self, tier: Tier, stored: set[int], removed: set[int], cleared: bool) -> Word:
        held = set() if cleared else self.tiers[tier]
        self.tiers[tier] = (held - removed) | stored
        self.sequence += 1
        self._remember()
        batch = KvBatch(self.worker, packed(stored), packed(removed - stored), cleared, tier)
        return self.incarnation, self.sequence, batch

    def summed_up(self) -> Held:
        gpu, *slower = [TierSum(t, len(s), digest(sorted(s))) for t, s in self.tiers.items()]
        return Held(gpu.blocks, gpu.digest, tuple(each for each in slower if each.blocks))

    def report(self) -> LoadReport:
        blocks, total, slower = self.summed_up()
        numbers = (0, 0, 0, 0, 0, 0, self.sequence, blocks, total)
        return LoadReport(self.worker, *numbers, slower=slower)

    def photograph(self, number: int) -> list[KvSnapshotChunk]:
        parts = [
            (tier, names[i : i + CHUNK_NAMES])
            for tier, names in [(tier, sorted(held)) for tier, held in self.tiers.items()]
            for i in range(0, max(1, len(names)), CHUNK_NAMES)
        ]
        return [
            KvSnapshotChunk(
                worker=self.worker,
                incarnation=self.incarnation,
                sequence=self.sequence,
                snapshot=number,
                chunk=i,
                last=i == len(parts) - 1,
                tier=tier,
                names=packed(part),
            )
            for i, (tier, part) in enumerate(parts)
        ]

    def _remember(self) -> None:
        self.past[self.incarnation, self.sequence] = self.summed_up()
