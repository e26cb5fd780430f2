"""A reader of one worker's truth, as a router is one, in its plainest form."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint

from proto.codec import Envelope, Producer, Reader
from proto.hashing import digest, unpack
from proto.ids import Incarnation, WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.load import LoadReport
from proto.subjects import Subjects
from proto.wire.errors import BusError
from proto.wire.ports import Bus

DEADLINE_S = 20.0
POLL_S = 0.005


async def wait_until(condition: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    """Return when the condition holds, or when it did not within that time."""
    until_s = anyio.current_time() + within_s
    while True:
        if condition() or anyio.current_time() > until_s:
            return
        await anyio.sleep(POLL_S)


class PlainReader:
    """Applies batches in order; at a hole, a new life or a report that disagrees it fetches a
    snapshot. `names` is what the worker holds in its GPU tier."""

    def __init__(self, bus: Bus, subjects: Subjects, worker: WorkerId) -> None:
        self._bus = bus
        self._subjects = subjects
        self._worker = worker
        self._batches: Reader[KvBatch] = Reader(KvBatch)
        self._reports: Reader[LoadReport] = Reader(LoadReport)
        self._chunks: Reader[KvSnapshotChunk] = Reader(KvSnapshotChunk)
        self._requests = Producer("reader", Incarnation(1), anyio.current_time)
        self.names: set[int] = set()
        self.incarnation = 0
        self.sequence = 0
        self.report: LoadReport | None = None
        self.fetched: list[str] = []
        """Why a snapshot was asked for, each time."""

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Listen until cancelled."""
        async with (
            anyio.create_task_group() as tasks,
            self._bus.subscribe(self._subjects.kv(self._worker)) as batches,
            self._bus.subscribe(self._subjects.load(self._worker)) as reports,
        ):

            async def read_reports() -> None:
                async for message in reports:
                    await self._check(self._reports.open(message.data))

            tasks.start_soon(read_reports)
            task_status.started()
            async for message in batches:
                await self._take(self._batches.open(message.data))

    async def holds(self, names: set[int]) -> None:
        """Wait until this is what the worker says it holds."""
        await wait_until(lambda: self.names == names and self.report is not None)
        assert self.names == names

    async def has_report(self, **fields: object) -> None:
        """Wait for a load report with these values."""

        def told() -> dict[str, object]:
            return {field: getattr(self.report, field, None) for field in fields}

        await wait_until(lambda: told() == fields)
        assert told() == fields

    async def _take(self, batch: Envelope[KvBatch]) -> None:
        where = (batch.incarnation, batch.sequence)
        if where <= (self.incarnation, self.sequence):
            return
        if where != (self.incarnation, self.sequence + 1):
            await self._fetch("gap")
            return
        self.sequence += 1
        body = batch.body
        if body.tier is not Tier.GPU:
            return
        if body.cleared:
            self.names.clear()
        self.names -= set(unpack(body.removed))
        self.names |= set(unpack(body.stored))

    async def _check(self, report: Envelope[LoadReport]) -> None:
        self.report = report.body
        if report.incarnation < self.incarnation:
            return
        await checkpoint()  # a batch that was sent before the report is read before it
        if (report.incarnation, report.body.kv_sequence) > (self.incarnation, self.sequence):
            await self._fetch("behind")
        elif report.body.kv_sequence == self.sequence and (
            (report.body.live_blocks, report.body.digest)
            != (len(self.names), digest(list(self.names)))
        ):
            await self._fetch("digest")

    async def _fetch(self, why: str) -> None:
        self.fetched.append(why)
        names: set[int] = set()
        snapshot, number = 0, 0
        while True:
            try:
                chunk = await self._ask(KvSnapshotRequest(snapshot, number))
            except BusError:
                return
            if chunk.tier is Tier.GPU:
                names |= set(unpack(chunk.names))
            if chunk.last:
                break
            snapshot, number = chunk.snapshot, number + 1
        self.names = names
        self.incarnation, self.sequence = chunk.incarnation, chunk.sequence

    async def _ask(self, request: KvSnapshotRequest) -> KvSnapshotChunk:
        reply = await self._bus.request(
            self._subjects.snapshot(self._worker), self._requests.seal(request), timeout_s=5
        )
        return self._chunks.open(reply.data).body
