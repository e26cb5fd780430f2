"""The live set: canonical names of what an engine caches, and its net changes since last told.

Changes keep the order in which they became true: in which parents enter first and leave last. So
a reader that has taken in a part of them only holds whole prefixes, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from proto.hashing import Words
from proto.kv import Tier
from proto.load import TierSum


class Change(msgspec.Struct, frozen=True):
    """Net changes of one tier, in the meaning and order of `proto.kv.KvBatch`."""

    tier: Tier
    stored: Words
    removed: Words
    cleared: bool


class LiveSet:
    """Names by tier, and what a reader of earlier changes lacks.

    Two of an engine's blocks may bear one name, as its hashes tell apart what routing does not;
    the name is live while one of them is.
    """

    def __init__(self) -> None:
        self._tiers: dict[Tier, _Tier] = {Tier.GPU: _Tier()}
        self._gpu = self._tiers[Tier.GPU]

    @property
    def blocks(self) -> int:
        """How many names are live in the GPU tier."""
        return len(self._gpu.holders)

    @property
    def digest(self) -> int:
        """Exclusive or of the names in the GPU tier, as `proto.hashing.digest`."""
        return self._gpu.digest

    @property
    def slower(self) -> tuple[TierSum, ...]:
        """What each slower tier holds that holds anything, nearest first."""
        return tuple(
            TierSum(which, len(tier.holders), tier.digest)
            for which, tier in sorted(self._tiers.items())
            if which is not Tier.GPU and tier.holders
        )

    def add(self, name: int, tier: Tier) -> None:
        """One more block bears this name."""
        if tier not in self._tiers:
            self._tiers[tier] = _Tier()
        self._tiers[tier].add(name)

    def discard(self, name: int, tier: Tier) -> None:
        """One block fewer bears this name; it must have been added."""
        self._tiers[tier].discard(name)

    def clear(self) -> None:
        """Nothing is live, in no tier."""
        for tier in self._tiers.values():
            tier.clear()

    @property
    def pending(self) -> int:
        """How many changes `take` would give."""
        return sum(tier.pending for tier in self._tiers.values())

    def take(self) -> list[Change]:
        """The net changes since the last call, for each tier that changed."""
        return [tier.take(which) for which, tier in self._tiers.items() if tier.pending]

    def names(self) -> Iterator[tuple[Tier, Words]]:
        """All names, tier by tier; at least the GPU's, even if there are none."""
        for which, tier in self._tiers.items():
            yield which, _words(tier.holders)


class _Tier:
    """What one tier holds, and how that differs from what was last taken.

    After a clear all that was taken is void, so only `stored` counts until the next `take`.
    """

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.digest = 0
        self._stored: dict[int, None] = {}
        self._removed: dict[int, None] = {}
        self._cleared = False

    def add(self, name: int) -> None:
        self.holders[name] = self.holders.get(name, 0) + 1
        if self.holders[name] > 1:
            return
        self.digest ^= name
        if name in self._removed:
            del self._removed[name]
        else:
            self._stored[name] = None

    def discard(self, name: int) -> None:
        self.holders[name] -= 1
        if self.holders[name]:
            return
        del self.holders[name]
        self.digest ^= name
        if name in self._stored:
            del self._stored[name]
        else:
            self._removed[name] = None

    def clear(self) -> None:
        self._cleared = self._cleared or bool(self.holders or self._removed)
        self.holders.clear()
        self.digest = 0
        self._stored.clear()
        self._removed.clear()

    @property
    def pending(self) -> int:
        return len(self._stored) + len(self._removed) + self._cleared

    def take(self, tier: Tier) -> Change:
        change = Change(tier, _words(self._stored), _words(self._removed), self._cleared)
        self._stored.clear()
        self._removed.clear()
        self._cleared = False
        return change


def _words(names: dict[int, int] | dict[int, None]) -> Words:
    return np.fromiter(names, dtype=np.uint64, count=len(names))
