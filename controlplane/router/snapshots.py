"""Repair: fetch the whole truth from an agent and put it in place of what we believed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from controlplane.router.core import RouterCore
from controlplane.router.ingest import BadSnapshot, Lane, Snapshot, retry_pause_s
from controlplane.router.metrics import RouterMetrics
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader, Unreadable
from proto.ids import WorkerId
from proto.kv import KvBatch, KvSnapshotChunk
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus

log = logging.getLogger(__name__)


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

    def apply(self, batches: Iterable[KvBatch]) -> None:
        """What a lane lets through."""
        for batch in batches:
            self._core.apply(batch)

    def heal(self, worker: WorkerId, tasks: TaskGroup) -> None:
        """If the worker's lane needs a snapshot, see to it that it gets one."""
        lane = self.lanes.get(worker)
        if lane is not None and lane.needs and worker not in self._healing:
            self._healing.add(worker)
            tasks.start_soon(self._heal, worker)

    def forget(self, worker: WorkerId) -> None:
        """The worker has left."""
        self.lanes.pop(worker, None)
        self._tried.discard(worker)
        self._tell()

    async def all_tried(self) -> None:
        """Wait until every lane is true or has failed at least once."""
        while any(lane.needs and w not in self._tried for w, lane in self.lanes.items()):
            await self._changed.wait()

    def untrue(self) -> Mapping[WorkerId, str]:
        """Lanes that need a snapshot, and why."""
        return {w: lane.needs for w, lane in self.lanes.items() if lane.needs}

    async def _heal(self, worker: WorkerId) -> None:
        failures = 0
        try:
            await anyio.sleep(self._settings.snapshot_grace_s)
            while (lane := self.lanes.get(worker)) is not None and lane.needs:
                reason = lane.needs
                try:
                    async with self._slots:
                        await self._replace(worker, lane)
                    self._metrics.repairs.labels(reason).inc()
                    log.info("the index of %s was repaired (%s)", worker, reason)
                except (BusError, Unreadable, BadSnapshot) as error:
                    self._metrics.failed_repairs.inc()
                    log.warning("no snapshot of %s (%s): %s", worker, reason, error)
                    self.apply(lane.make_do())
                self._tried.add(worker)
                self._tell()
                if lane.needs:
                    failures += 1
                    await anyio.sleep(retry_pause_s(failures))
        finally:
            self._healing.discard(worker)
            self._tell()

    async def _replace(self, worker: WorkerId, lane: Lane) -> None:
        """Raises `BusError`, `Unreadable`, `BadSnapshot`; then the lane still needs a snapshot."""
        snapshot = await self._fetch(worker)
        for batch in lane.install(snapshot):
            if self.lanes.get(worker) is not lane:
                return  # it left meanwhile; who has its name now is another
            self._core.apply(batch)
            await checkpoint()

    async def _fetch(self, worker: WorkerId) -> Snapshot:
        snapshot = Snapshot(worker)
        while not snapshot.complete:
            reply = await self._bus.request(
                self._subjects.snapshot(worker),
                self._producer.seal(snapshot.next_request),
                timeout_s=self._settings.snapshot_timeout_s,
            )
            snapshot.add(self._reader.open(reply.data).body)
        return snapshot

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
