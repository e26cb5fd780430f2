"""Which prefixes are asked for so often that one worker should not answer alone. Pure.

Prompts share a beginning and then differ, and nothing says where. So each prompt is counted at a
few depths, four to every doubling, as far as anybody holds it: the deepest one that is asked for
often enough is the prefix that its askers share, to a quarter. Counts fade by half every
`HALF_LIFE_S`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

from proto.hashing import Words

HALF_LIFE_S = 10.0
RATE = math.log(2) / HALF_LIFE_S
"""What a faded count is multiplied by to be a rate."""
ENTRIES_MAX = 65_536
PAUSE_S = 5.0
"""Between two copies of one prefix: what came of the first must be known before."""


class Hot(NamedTuple):
    """A prefix by its last block, how long it is, and how many a second ask for it."""

    tail: int
    blocks: int
    per_s: float


class _Count:
    __slots__ = ("asked_s", "copied_s", "count")

    def __init__(self, now_s: float) -> None:
        self.count = 0.0
        self.asked_s = now_s
        self.copied_s = -math.inf


class Heat:
    """Faded counts of prefixes; the ones not asked for the longest are forgotten."""

    def __init__(self, blocks_min: int) -> None:
        self._blocks_min = max(1, blocks_min)
        self._counts: OrderedDict[int, _Count] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, names: Words, held_blocks: int, now_s: float) -> list[Hot]:
        """A prompt has come, of which somebody holds so many blocks. What it shares with others, by
        how often they ask, the longest first."""
        found = []
        for blocks in depths(self._blocks_min, min(held_blocks, len(names))):
            tail = int(names[blocks - 1])
            count = self._counts.get(tail)
            if count is None:
                count = self._counts[tail] = _Count(now_s)
            faded = count.count * 0.5 ** ((now_s - count.asked_s) / HALF_LIFE_S)
            count.count, count.asked_s = faded + 1, now_s
            self._counts.move_to_end(tail)
            found.append(Hot(tail, blocks, count.count * RATE))
        while len(self._counts) > ENTRIES_MAX:
            self._counts.popitem(last=False)
        return found[::-1]

    def may_copy(self, tail: int, now_s: float) -> bool:
        """Whether the prefix has not been copied a moment ago; says so from now on."""
        count = self._counts[tail]
        if now_s - count.copied_s < PAUSE_S:
            return False
        count.copied_s = now_s
        return True


def depths(first: int, last: int) -> Iterator[int]:
    """Where a prompt is counted: `first`, then four to every doubling."""
    depth = first
    while depth <= last:
        yield depth
        depth += max(1, 1 << max(0, depth.bit_length() - 3))
