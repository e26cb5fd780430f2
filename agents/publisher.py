"""What an agent says of its engine's cache and load, in order and in agreement.

Net changes are gathered for a few milliseconds and leave as numbered batches. The engine's reader
never waits for that: it changes the `LiveSet`, which keeps net changes only, so that what is
pending is never more than what was live when last told plus what is live now.

A batch that the bus does not take is forgotten, and its number is spent. Readers see the hole, or
a load report that is ahead of them, and fetch a snapshot: the same cure as for a batch lost on
the way. So the incarnation stays as it is, and nothing is ever sent twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import anyio
import msgspec

from agents.adapters.protocol import EngineLoad
from agents.live import Change, LiveSet
from agents.metrics import AgentMetrics
from agents.steps import StepMeter
from proto.codec import Producer
from proto.hashing import Words, pack
from proto.ids import Incarnation, WorkerId
from proto.kv import KvBatch, Tier
from proto.load import LoadReport, StepSums
from proto.subjects import Subjects
from proto.wire.errors import BusUnavailable
from proto.wire.ports import Bus

log = logging.getLogger(__name__)

GATHER_S = 0.005
"""Longer makes fewer and fuller batches, and routers that know later."""
BATCH_BLOCKS = 8_192
"""Of one message: 64 KiB of names."""


class Photo(msgspec.Struct, frozen=True):
    """The whole live set as it was after batch `sequence`."""

    sequence: int
    tiers: list[tuple[Tier, Words]]


class Outbox:
    """The numbered stream of KV batches of one worker, and load reports that agree with it."""

    def __init__(
        self,
        bus: Bus,
        subjects: Subjects,
        worker: WorkerId,
        incarnation: Incarnation,
        live: LiveSet,
        metrics: AgentMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._bus = bus
        self._worker = worker
        self._live = live
        self._metrics = metrics
        self._kv_subject = subjects.kv(worker)
        self._load_subject = subjects.load(worker)
        self._kv = Producer(worker, incarnation, clock)
        self._load = Producer(worker, incarnation, clock)
        self._steps = StepMeter()
        self._changed = anyio.Event()
        self._plenty = anyio.Event()
        self._order = anyio.Lock()  # what is sealed first leaves first
        self._losing = False

    def outrank(self, incarnation: Incarnation) -> None:
        """Go by this one; before anything has been said."""
        self._kv.incarnation = self._load.incarnation = incarnation

    def wake(self) -> None:
        """The live set may have changed."""
        pending = self._live.pending
        if pending:
            self._changed.set()
        if pending >= BATCH_BLOCKS:
            self._plenty.set()

    async def run(self) -> None:
        """Send changes as they come, until cancelled."""
        while True:
            await self._changed.wait()
            with anyio.move_on_after(GATHER_S):
                await self._plenty.wait()
            self._changed, self._plenty = anyio.Event(), anyio.Event()
            async with self._order:
                await self._send(self._seal())

    async def report(
        self, load: EngineLoad, *, total_blocks: int, healthy: bool, draining: bool
    ) -> StepSums:
        """Say how busy the engine is, after all changes so far; returns what it says of steps."""
        async with self._order:
            batches = self._seal()
            steps = self._steps.take(load, anyio.current_time())
            report = LoadReport(
                worker=self._worker,
                running=load.running,
                waiting=load.waiting,
                queued_prefill_tokens=load.queued_prefill_tokens,
                decode_kv_tokens=load.decode_kv_tokens,
                used_blocks=load.used_blocks,
                total_blocks=total_blocks,
                kv_sequence=self._kv.sequence,
                live_blocks=self._live.blocks,
                digest=self._live.digest,
                slower=self._live.slower,
                healthy=healthy,
                draining=draining,
                preemptions=load.preemptions,
                cached_tokens=load.cached_tokens,
                queried_tokens=load.queried_tokens,
                steps=steps,
            )
            await self._send(batches)
            await self._publish(self._load_subject, self._load.seal(report))
            return steps

    async def photograph(self) -> Photo:
        """The live set, once all that led to it has been sent."""
        async with self._order:
            batches = self._seal()
            photo = Photo(self._kv.sequence, list(self._live.names()))
            await self._send(batches)
            return photo

    def _seal(self) -> list[bytes]:
        """Number and encode what is pending; after this, told and live are the same."""
        return [
            self._kv.seal(batch)
            for change in self._live.take()
            for batch in _batches(self._worker, change)
        ]

    async def _send(self, batches: Sequence[bytes]) -> None:
        for batch in batches:
            sent = await self._publish(self._kv_subject, batch)
            self._metrics.batches.labels("sent" if sent else "lost").inc()

    async def _publish(self, subject: str, data: bytes) -> bool:
        try:
            await self._bus.publish(subject, data)
        except BusUnavailable as error:
            if not self._losing:
                log.warning("the bus takes nothing, readers will need a snapshot: %s", error)
            self._losing = True
            return False
        self._losing = False
        return True


def _batches(worker: WorkerId, change: Change) -> Iterator[KvBatch]:
    """A change in pieces of at most `BATCH_BLOCKS`: what leaves first, then what enters."""
    removed, stored, cleared = change.removed, change.stored, change.cleared
    while cleared or len(removed) or len(stored):
        room = max(0, BATCH_BLOCKS - len(removed))
        yield KvBatch(
            worker=worker,
            stored=pack(stored[:room]),
            removed=pack(removed[:BATCH_BLOCKS]),
            cleared=cleared,
            tier=change.tier,
        )
        removed, stored, cleared = removed[BATCH_BLOCKS:], stored[room:], False
