"""One lane a worker: KV batches in order, holes noticed, snapshots fitted in.

A lane says when it needs a snapshot and why; fetching one is the service's business. While it
waits, later batches are kept, up to a bound; the snapshot makes the earlier ones unnecessary.
"""

from __future__ import annotations

from collections.abc import Iterator

from proto.kv import KvBatch
from proto.load import LoadReport

HELD_BATCHES_MAX = 4_096


class Lane:
    """The numbered stream of one worker, as far as it has been applied. Pure."""

    def __init__(self, held_max: int = HELD_BATCHES_MAX) -> None:
        self.incarnation = 0
        self.sequence = 0
        """Of the last batch applied; 0 with incarnation 0 means nothing is known yet."""
        self.needs: str | None = None
        """Why a snapshot is needed: a short word for the metric; None when the lane is true."""
        self.paused = False
        """A snapshot is being installed, in pieces: hold what comes meanwhile."""
        self._held: dict[int, KvBatch] = {}
        self._held_max = held_max

    def offer(self, incarnation: int, sequence: int, batch: KvBatch) -> Iterator[KvBatch]:
        """Take a batch as it arrives; yields what is to be applied now, in order.

        The first batch of a new life is preceded by one that clears the worker.
        """
        if incarnation < self.incarnation or (
            incarnation == self.incarnation and sequence <= self.sequence
        ):
            return  # an earlier life, or a duplicate
        if incarnation > self.incarnation:
            yield from self._begin(incarnation, batch)
        if sequence == self.sequence + 1 and not self.paused:
            self.sequence = sequence
            yield batch
            yield from self._take_held()
            return
        self._hold(sequence, batch)

    def check(self, report: LoadReport, incarnation: int, count: int, digest: int) -> bool:
        """Hold our copy (`count` blocks, `digest`) against the agent's word; True if it agrees."""
        if incarnation < self.incarnation:
            return True  # about an earlier life
        if incarnation > self.incarnation or report.kv_sequence > self.sequence:
            self.needs = self.needs or "behind"
            return False
        if report.kv_sequence < self.sequence:
            return True  # our copy is newer than the report
        if (report.live_blocks, report.digest) == (count, digest):
            return True
        self.needs = self.needs or "digest"
        return False

    def install(self, incarnation: int, sequence: int) -> Iterator[KvBatch]:
        """A snapshot as of `sequence` has replaced the worker's blocks; yields what was held and
        comes after it. A snapshot older than the lane is refused with ValueError."""
        if (incarnation, sequence) < (self.incarnation, self.sequence):
            raise ValueError("the snapshot is older than what has been applied")
        if incarnation > self.incarnation:
            self._held.clear()
        self.incarnation, self.sequence = incarnation, sequence
        self.needs, self.paused = None, False
        for old in [s for s in self._held if s <= sequence]:
            del self._held[old]
        yield from self._take_held()
        if self._held:
            self.needs = "gap"

    def _begin(self, incarnation: int, batch: KvBatch) -> Iterator[KvBatch]:
        self._held.clear()
        self.incarnation, self.sequence = incarnation, 0
        self.needs, self.paused = None, False
        yield KvBatch(batch.worker, cleared=True)

    def _hold(self, sequence: int, batch: KvBatch) -> None:
        self.needs = self.needs or ("gap" if self.sequence else "joined")
        if len(self._held) >= self._held_max:
            del self._held[min(self._held)]  # a snapshot will cover the oldest
        self._held[sequence] = batch

    def _take_held(self) -> Iterator[KvBatch]:
        while (batch := self._held.pop(self.sequence + 1, None)) is not None:
            self.sequence += 1
            yield batch
        if not self._held and self.needs == "gap":
            self.needs = None  # it was only out of order
