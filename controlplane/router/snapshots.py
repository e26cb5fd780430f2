"""Repair: fetch the whole truth from an agent and put it in place of what we believed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from controlplane.router.core import RouterCore
from controlplane.router.ingest import Lane
from controlplane.router.metrics import RouterMetrics
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader, Unreadable
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.2
RETRY_MAX_S = 5.0
CHUNKS_MAX = 4_096
"""256 Mi blocks; an agent that says it has more is not believed."""


class Repair:
    """Heals lanes that need a snapshot, a bounded number at once, each until it is true."""

    def __init__(
        self,
        settings: RouterSettings,
        bus: Bus,
        subjects: Subjects,
        core: RouterCore,
        metrics: RouterMetrics,
        producer: Producer,
    ) -> None:
        self.lanes: dict[WorkerId, Lane] = {}
        self._settings = settings
        self._bus = bus
        self._subjects = subjects
        self._core = core
        self._metrics = metrics
        self._producer = producer
        self._reader = Reader[KvSnapshotChunk](KvSnapshotChunk)
        self._slots = anyio.CapacityLimiter(settings.snapshots_at_once)
        self._healing: set[WorkerId] = set()
        self._tried: set[WorkerId] = set()
        self._changed = anyio.Event()

    def want(self, worker: WorkerId, tasks: TaskGroup) -> None:
        """See to it that the worker's lane becomes true; at once if nobody does already."""
        if worker not in self._healing:
            self._healing.add(worker)
            tasks.start_soon(self._heal, worker)

    def forget(self, worker: WorkerId) -> None:
        """The worker has left."""
        self.lanes.pop(worker, None)
        self._tell()

    async def all_tried(self) -> None:
        """Wait until every lane is true or has failed at least once."""
        while any(lane.needs and w not in self._tried for w, lane in self.lanes.items()):
            await self._changed.wait()

    def untrue(self) -> Mapping[WorkerId, str]:
        """Lanes that still need a snapshot, and why."""
        return {w: lane.needs for w, lane in self.lanes.items() if lane.needs}

    async def _heal(self, worker: WorkerId) -> None:
        pause_s = RETRY_FIRST_S
        try:
            await anyio.sleep(self._settings.snapshot_grace_s)
            while (lane := self.lanes.get(worker)) is not None and lane.needs:
                reason = lane.needs
                try:
                    async with self._slots:
                        await self._replace(worker, lane)
                    self._metrics.repairs.labels(reason).inc()
                    log.info("the index of %s was repaired (%s)", worker, reason)
                except (BusError, Unreadable, ValueError) as error:
                    self._metrics.failed_repairs.inc()
                    log.warning("no snapshot of %s (%s): %s", worker, reason, error)
                    lane.paused = False
                    self._tried.add(worker)
                    self._tell()
                    await anyio.sleep(pause_s)
                    pause_s = min(2 * pause_s, RETRY_MAX_S)
        finally:
            self._healing.discard(worker)
            self._tried.add(worker)
            self._tell()

    async def _replace(self, worker: WorkerId, lane: Lane) -> None:
        """Raises `BusError`, `Unreadable`, ValueError; then the lane still needs a snapshot."""
        chunks = await self._fetch(worker)
        if self.lanes.get(worker) is not lane:
            return
        last = chunks[-1]
        lane.paused = True
        self._core.apply(KvBatch(worker, cleared=True))
        for chunk in chunks:
            self._core.apply(KvBatch(worker, chunk.names, tier=Tier(chunk.tier)))
            await anyio.lowlevel.checkpoint()
        for batch in lane.install(last.incarnation, last.sequence):
            self._core.apply(batch)

    async def _fetch(self, worker: WorkerId) -> list[KvSnapshotChunk]:
        chunks: list[KvSnapshotChunk] = []
        while len(chunks) < CHUNKS_MAX:
            snapshot = chunks[0].snapshot if chunks else 0
            reply = await self._bus.request(
                self._subjects.snapshot(worker),
                self._producer.seal(KvSnapshotRequest(snapshot, len(chunks))),
                timeout_s=self._settings.snapshot_timeout_s,
            )
            chunk = self._reader.open(reply.data).body
            if (chunk.worker, chunk.chunk) != (worker, len(chunks)):
                raise ValueError(f"asked for chunk {len(chunks)} and got {chunk.chunk}")
            chunks.append(chunk)
            if chunk.last:
                return chunks
        raise ValueError(f"more than {CHUNKS_MAX} chunks")

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
