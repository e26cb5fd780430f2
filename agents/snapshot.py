"""The whole live set on request, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import msgspec

from agents.metrics import AgentMetrics
from agents.publisher import Outbox, Photo
from proto.codec import Producer, Reader, Unreadable
from proto.hashing import Words, pack
from proto.ids import Incarnation, WorkerId
from proto.kv import SNAPSHOT_CHUNK_BLOCKS, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.subjects import Subjects
from proto.wire.errors import RequestRefused
from proto.wire.ports import Endpoint, Message

KEPT = 16
"""Snapshots at a time: one for each router, those of gateways among them, that starts anew. With
fewer, readers in step push out each other's for ever."""
KEPT_S = 30.0


class _Kept(msgspec.Struct, frozen=True):
    sequence: int
    chunks: list[tuple[Tier, Words]]
    expires_s: float


class Snapshots:
    """The endpoint that gives out snapshots of one worker."""

    def __init__(
        self,
        outbox: Outbox,
        subjects: Subjects,
        worker: WorkerId,
        incarnation: Incarnation,
        metrics: AgentMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._worker = worker
        self._incarnation = incarnation
        self._metrics = metrics
        self._clock = clock
        self._reader: Reader[KvSnapshotRequest] = Reader(KvSnapshotRequest)
        self._producer = Producer(worker, incarnation, clock)
        # Numbers of an earlier incarnation must not come again with another content.
        self._numbers = count(incarnation)
        self._kept: dict[int, _Kept] = {}
        self.endpoint = Endpoint("snapshot", subjects.snapshot(worker), self._handle, group=None)

    def outrank(self, incarnation: Incarnation) -> None:
        """Go by this one; before anything has been asked."""
        self._incarnation = self._producer.incarnation = incarnation
        self._numbers = count(incarnation)

    async def _handle(self, message: Message) -> bytes:
        try:
            chunk = await self._chunk(self._reader.open(message.data).body)
        except Unreadable as error:
            self._metrics.snapshots.labels("refused").inc()
            raise RequestRefused(400, f"not a KvSnapshotRequest: {error}") from error
        except RequestRefused:
            self._metrics.snapshots.labels("refused").inc()
            raise
        self._metrics.snapshots.labels("answered").inc()
        return self._producer.seal(chunk)

    async def _chunk(self, request: KvSnapshotRequest) -> KvSnapshotChunk:
        number = request.snapshot or self._keep(await self._outbox.photograph())
        kept = self._kept.get(number)
        if kept is None or kept.expires_s <= self._clock():
            raise RequestRefused(404, f"snapshot {number} is not kept; begin again with 0")
        if not 0 <= request.chunk < len(kept.chunks):
            raise RequestRefused(400, f"snapshot {number} has {len(kept.chunks)} chunks")
        tier, names = kept.chunks[request.chunk]
        return KvSnapshotChunk(
            worker=self._worker,
            incarnation=self._incarnation,
            sequence=kept.sequence,
            snapshot=number,
            chunk=request.chunk,
            last=request.chunk == len(kept.chunks) - 1,
            tier=tier,
            names=pack(names),
        )

    def _keep(self, photo: Photo) -> int:
        while len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        number = next(self._numbers)
        chunks = list(_chunks(photo))
        self._kept[number] = _Kept(photo.sequence, chunks, self._clock() + KEPT_S)
        return number


def _chunks(photo: Photo) -> Iterator[tuple[Tier, Words]]:
    """At least one, if only to say that there is nothing."""
    for tier, names in photo.tiers:
        for start in range(0, max(1, len(names)), SNAPSHOT_CHUNK_BLOCKS):
            yield tier, names[start : start + SNAPSHOT_CHUNK_BLOCKS]
