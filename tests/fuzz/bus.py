"""Messages of the bus, to a router: garbage is refused or ignored, and it still decides."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgspec

from controlplane.router.core import RouterCore
from controlplane.router.ingest import BadSnapshot, Lane, Snapshot
from controlplane.router.policies.catalog import Catalog
from controlplane.router.requests import check
from controlplane.router.settings import RouterSettings
from proto.codec import Envelope, Producer, Reader, Unreadable
from proto.ids import Incarnation, RequestId, WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, Tier
from proto.load import LoadReport, StepSums, TierSum
from proto.progress import Booking, Bookings, Phase, Progress, Withdrawn
from proto.route import Chosen, RouteRequest
from tests.fuzz.mutate import changed_bytes, changed_value
from tests.schedules.network import demand
from tests.support.numbered_agent import packed
from tests.support.router_core import record

WORKERS = (WorkerId("w0"), WorkerId("w1"))
NAMES = packed({1, 2, 3})
MODEL = record(WORKERS[0]).model
SIZE = record(WORKERS[0]).block_tokens
QUESTION = RouteRequest(RequestId("q"), MODEL, 4 * SIZE, {SIZE: NAMES}, session="s")
WORDS = (
    KvBatch(WORKERS[0], NAMES, packed({9}), tier=Tier.HOST),
    LoadReport(
        WORKERS[0], 1, 2, 300, 4_000, 5, 600, 1, 3, 0, steps=StepSums(3, 40, 5.0, 6, 700, 8.0),
        slower=(TierSum(Tier.HOST, 1, 9),),
    ),
    Progress(RequestId("q"), WORKERS[0], 1, Phase.FIRST_TOKEN),
    Bookings((Booking(RequestId("q2"), WORKERS[1], 100, 4, 1, 7),), last=True),
    Withdrawn(RequestId("q"), 1, WORKERS[1]),
    KvSnapshotChunk(WORKERS[0], 1, 1, 1, 0, True, Tier.GPU, NAMES),
    QUESTION,
)  # fmt: skip
MESSAGES = [Producer("x", Incarnation(1), lambda: 1.0).seal(word) for word in WORDS]
READERS: Mapping[type, Reader[Any]] = {type(word): Reader(type(word)) for word in WORDS}
SETTINGS, CATALOG = RouterSettings(), Catalog()


def play(rng: random.Random, trace: list[str] | None = None) -> None:
    """Some bad messages, and a good question at the end."""
    ear = _Ear(rng)
    for _ in range(rng.randrange(1, 12)):
        which = rng.randrange(len(WORDS))
        if rng.random() < 0.5:
            data = changed_bytes(rng, MESSAGES[which], MESSAGES)
        else:
            good = msgspec.msgpack.decode(MESSAGES[which])
            data = msgspec.msgpack.encode(changed_value(rng, good))
        if trace is not None:
            trace.append(f"{type(WORDS[which]).__name__} {data.hex()}")
        ear.hear(type(WORDS[which]), data)
    verdict = ear.core.decide(QUESTION, 1e6)
    demand(isinstance(verdict, Chosen), "a good question got", verdict)


class _Ear:
    """What a router's listener does with a message, without the bus."""

    def __init__(self, rng: random.Random) -> None:
        self.core = RouterCore(SETTINGS, "r", rng)
        self._lanes = {worker: Lane(worker) for worker in WORKERS}
        for worker in WORKERS:
            self.core.worker_joined(record(worker))
        self._takes: Mapping[type, Callable[[Envelope[Any]], None]] = {
            KvBatch: self._kv,
            LoadReport: self._load,
            Progress: lambda said: self.core.progress(said.body, 1.0),
            Bookings: self._bookings,
            Withdrawn: lambda said: self.core.withdraw(said.body, 1.0),
            KvSnapshotChunk: self._chunk,
            RouteRequest: self._question,
        }

    def hear(self, kind: type, data: bytes) -> None:
        """As `Listener` and `RouterService` do: what they would skip is skipped."""
        with suppress(Unreadable, ValueError):
            self._takes[kind](READERS[kind].open(data))

    def _kv(self, said: Envelope[KvBatch]) -> None:
        lane = self._lanes.get(said.body.worker)
        if lane is not None:
            self._apply(lane.offer(said.incarnation, said.sequence, said.body))

    def _load(self, said: Envelope[LoadReport]) -> None:
        lane = self._lanes.get(said.body.worker)
        if lane is not None:
            held = self.core.known.held(said.body.worker)
            self._apply(lane.check(said.body, said.incarnation, held))
        self.core.observe_load(said.body, 1.0)

    def _bookings(self, said: Envelope[Bookings]) -> None:
        for booking in said.body.bookings:
            self.core.booked_elsewhere(booking, 1.0)

    def _chunk(self, said: Envelope[KvSnapshotChunk]) -> None:
        snapshot = Snapshot(WORKERS[0])
        with suppress(BadSnapshot):
            snapshot.add(said.body)
            if snapshot.complete:
                self._apply(tuple(self._lanes[WORKERS[0]].install(snapshot)))

    def _question(self, said: Envelope[RouteRequest]) -> None:
        check(said.body, CATALOG)
        self.core.decide(said.body, 1.0)

    def _apply(self, batches: Any) -> None:
        for batch in batches:
            self.core.apply(batch)
