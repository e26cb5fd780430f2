"""What agents say of their engines' caches: an index a tier, and runs that go on across.

An engine looks a prompt up in its GPU, goes on in host memory where that ends, and then on disk. A
block may be in several tiers, or back in a nearer one behind the end of its run, which then is of
no use. So what counts is the leading run in the GPU, the run in host memory that follows it, and
the one on disk that follows that.

Most fleets have no slower tiers. They have one index, which is searched by halving; only where
something of the prompt lies in a slower tier are the holders of all its blocks read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.router.index import PrefixIndex
from controlplane.router.ingest import Held
from controlplane.router.policies.base import Ints
from proto.hashing import Words
from proto.ids import WorkerId
from proto.kv import KvBatch, Tier
from proto.load import TierSum

SeatsIn = Callable[[PrefixIndex], Ints]
"""Where an index has the workers of a fleet, by row."""


class Found(NamedTuple):
    """Blocks of a prompt, by row of a fleet."""

    gpu: Ints
    slower: Ints | None
    """One row of this a slower tier; None if none of the prompt is there."""


class Tiers:
    """Blocks by tier and name. Pure; as exact as the indexes it is made of."""

    def __init__(self) -> None:
        self.gpu = PrefixIndex()
        self._slower: dict[Tier, PrefixIndex] = {}
        """Made when something is first stored there."""

    def __len__(self) -> int:
        """Blocks held by anybody, those of each tier counted on their own."""
        return len(self.gpu) + sum(map(len, self._slower.values()))

    def __contains__(self, worker: WorkerId) -> bool:
        return worker in self.gpu

    def join(self, worker: WorkerId) -> None:
        """Know a worker; it holds nothing yet. Joining twice is fine."""
        self.gpu.join(worker)

    def leave(self, worker: WorkerId) -> None:
        """Forget a worker and everything it held."""
        self.gpu.leave(worker)
        for index in self._slower.values():
            index.leave(worker)

    def apply(self, batch: KvBatch) -> None:
        """Take in changes of one tier of a worker that is there.

        Raises ValueError, and changes nothing, if the names are not whole.
        """
        index = self.gpu if batch.tier is Tier.GPU else self._slower.get(batch.tier)
        if index is None:
            if not batch.stored:
                return
            index = self._slower[batch.tier] = PrefixIndex()
        index.join(batch.worker)
        index.apply(batch.worker, batch.cleared, batch.removed, batch.stored)

    def held(self, worker: WorkerId) -> Held:
        """What the worker holds, summed up as in its load reports."""
        slower = [
            TierSum(tier, blocks, index.digest(worker))
            for tier, index in sorted(self._slower.items())
            if (blocks := index.count(worker))
        ]
        return Held(self.gpu.count(worker), self.gpu.digest(worker), tuple(slower))

    def match(self, names: Words, seats_in: SeatsIn) -> Found:
        """Blocks of a prompt that each worker has in each tier, going on where nearer ones end.

        As exact as `PrefixIndex.match` if nothing of the prompt is in a slower tier, and else
        exact whatever workers hold.
        """
        marks = {tier: index.marks(names) for tier, index in self._slower.items() if len(index)}
        if not any(each.any() for each in marks.values()):
            seats = seats_in(self.gpu)
            return Found(self.gpu.match(names).take(seats), None)
        marks[Tier.GPU] = self.gpu.marks(names)
        bounds, of_runs = _runs(list(marks.values()))
        runs = dict(zip(marks, of_runs, strict=True))
        ends = [np.zeros(len(seats_in(self.gpu)), dtype=np.int64)]
        for tier in Tier:
            if tier in runs:
                index = self.gpu if tier is Tier.GPU else self._slower[tier]
                held = index.holds(runs[tier], seats_in(index))
                ends.append(_going_on(held, ends[-1]))
            else:
                ends.append(ends[-1])
        by_tier = np.diff(bounds[np.array(ends)], axis=0)
        return Found(by_tier[0], by_tier[1:])

    def sweep(self, entries_max: int) -> bool:
        """Go on with what the indexes put off, by a slice; True if more is to be done."""
        indexes = (self.gpu, *self._slower.values())
        return any(index.sweep(entries_max) for index in indexes)


class _Runs(NamedTuple):
    """A prompt in runs of equal marks in every index."""

    bounds: Ints
    """Where each run begins, and the length of the prompt."""
    marks: Sequence[Words]
    """Of each index, one a run."""


def _runs(marks: Sequence[Words]) -> _Runs:
    changes = np.logical_or.reduce([each[1:] != each[:-1] for each in marks])
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return _Runs(np.append(starts, len(marks[0])), [each[starts] for each in marks])


def _going_on(held: NDArray[np.bool_], first: Ints) -> Ints:
    """For each row, the column where what is held without a hole from column `first` on ends."""
    rows, columns = held.shape
    ended = np.ones((rows, columns + 1), dtype=np.bool_)
    np.logical_not(held, out=ended[:, :-1])
    ended &= np.arange(columns + 1) >= first[:, np.newaxis]
    ends: Ints = ended.argmax(axis=1)
    return ends
