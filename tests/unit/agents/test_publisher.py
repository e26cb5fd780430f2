from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from agents import publisher
from agents.adapters.protocol import EngineLoad
from agents.live import LiveSet
from agents.metrics import AgentMetrics
from agents.publisher import Outbox
from agents.snapshot import Snapshots
from proto.codec import Envelope, Reader
from proto.hashing import digest, unpack
from proto.ids import Incarnation, WorkerId
from proto.kv import KvBatch, Tier
from proto.load import LoadReport, TierSum
from proto.subjects import Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.ports import ServiceInfo
from tests.unit.agents.reader import PlainReader

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

WORKER, INCARNATION = WorkerId("w"), Incarnation(7)
SUBJECTS = Subjects("test")
LOAD = EngineLoad(
    running=2,
    waiting=1,
    queued_prefill_tokens=300,
    decode_kv_tokens=64,
    used_blocks=4,
    preemptions=0,
    cached_tokens=10,
    queried_tokens=20,
    started_s=None,
)


class World:
    """An outbox at work, and a plain reader of what it says."""

    def __init__(self) -> None:
        hub = MemoryHub()
        self.bus = hub.connect("agent", outgoing_messages=0)  # refuses at once when it is cut off
        self.live = LiveSet()
        self.registry = CollectorRegistry()
        metrics = AgentMetrics(self.registry)
        self.outbox = Outbox(
            self.bus, SUBJECTS, WORKER, INCARNATION, self.live, metrics, anyio.current_time
        )
        self.snapshots = Snapshots(
            self.outbox, SUBJECTS, WORKER, INCARNATION, metrics, anyio.current_time
        )
        self.ears = hub.connect("test")
        self.reader = PlainReader(self.ears, SUBJECTS, WORKER)

    def store(self, *names: int, tier: Tier = Tier.GPU) -> None:
        for name in names:
            self.live.add(name, tier)
        self.outbox.wake()

    def remove(self, *names: int) -> None:
        for name in names:
            self.live.discard(name, Tier.GPU)
        self.outbox.wake()

    async def report(self, *, draining: bool = False) -> None:
        await self.outbox.report(LOAD, total_blocks=64, healthy=True, draining=draining)

    def lost(self) -> float:
        return (
            self.registry.get_sample_value("tokenplane_agent_kv_batches_total", {"outcome": "lost"})
            or 0.0
        )


@asynccontextmanager
async def at_work(*, sending: bool = True) -> AsyncGenerator[World, None]:
    world = World()
    info = ServiceInfo("tokenplane-agent", "0.0.0")
    async with (
        anyio.create_task_group() as tasks,
        world.bus.serve(info, [world.snapshots.endpoint]),
    ):
        await tasks.start(world.reader.run)
        if sending:
            tasks.start_soon(world.outbox.run)
        yield world
        tasks.cancel_scope.cancel()


async def test_changes_reach_a_reader() -> None:
    async with at_work() as world:
        world.store(1, 2, 3)
        await world.report()
        await world.reader.holds({1, 2, 3})
        world.remove(2)
        world.store(4)
        await world.report()
        await world.reader.holds({1, 3, 4})


async def test_changes_are_gathered_into_net_batches() -> None:
    async with at_work() as world, world.ears.subscribe(SUBJECTS.kv(WORKER)) as batches:
        world.store(1, 2)
        world.remove(1)
        world.store(3)
        with anyio.fail_after(5):
            message = await anext(aiter(batches))
        batch = Reader[KvBatch](KvBatch).open(message.data)
        assert (batch.incarnation, batch.sequence) == (INCARNATION, 1)
        assert (set(unpack(batch.body.stored)), batch.body.removed) == ({2, 3}, b"")


async def test_a_big_change_travels_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "BATCH_BLOCKS", 3)
    async with at_work() as world:
        await world.report()
        await world.reader.holds(set())
        world.reader.fetched.clear()
        world.store(*range(1, 11))
        await world.report()
        await world.reader.holds(set(range(1, 11)))
        world.remove(*range(1, 8))
        world.store(*range(20, 25))
        await world.report()
        await world.reader.holds({8, 9, 10, *range(20, 25)})
        world.live.clear()
        world.store(*range(30, 35))
        await world.report()
        await world.reader.holds(set(range(30, 35)))
        assert world.reader.sequence > 8
    assert world.reader.fetched == []


async def test_a_report_speaks_of_the_batches_sent_before_it() -> None:
    """Whatever is pending goes out first, so that count and digest agree with the sequence."""
    async with at_work(sending=False) as world:
        for names in ([1], [2, 3], [4]):
            world.store(*names)
            await world.report()
        await world.reader.has_report(
            kv_sequence=3, live_blocks=4, digest=digest([1, 2, 3, 4]), running=2, total_blocks=64
        )
        await world.reader.holds({1, 2, 3, 4})
        assert "digest" not in world.reader.fetched


async def test_a_refused_batch_leaves_a_hole_that_a_snapshot_fills() -> None:
    async with at_work() as world:
        world.store(1)
        await world.report()
        await world.reader.holds({1})
        world.bus.cut()
        world.store(2)
        await world.report()
        assert world.lost() == 1
        world.bus.mend()
        world.store(3)
        await world.report()
        await world.reader.holds({1, 2, 3})
        assert world.reader.incarnation == INCARNATION


async def test_a_refused_last_batch_is_noticed_by_the_next_report() -> None:
    async with at_work() as world:
        world.store(1)
        await world.report()
        await world.reader.holds({1})
        world.bus.cut()
        world.store(2)
        await world.report()
        world.bus.mend()
        await world.report()
        await world.reader.holds({1, 2})


async def test_other_tiers_are_told_and_counted_apart() -> None:
    async with at_work() as world:
        world.store(1)
        world.store(1, 5, tier=Tier.HOST)
        await world.report()
        host = TierSum(Tier.HOST, 2, 1 ^ 5)
        await world.reader.has_report(live_blocks=1, digest=1, kv_sequence=2, slower=(host,))
        await world.reader.holds({1})


async def test_reports_are_numbered_apart_from_batches() -> None:
    async with at_work() as world, world.ears.subscribe(SUBJECTS.load(WORKER)) as reports:
        world.store(1)
        for _ in range(3):
            await world.report(draining=True)
        messages = aiter(reports)
        with anyio.fail_after(5):
            opened: list[Envelope[LoadReport]] = [
                Reader[LoadReport](LoadReport).open((await anext(messages)).data) for _ in range(3)
            ]
        assert [report.sequence for report in opened] == [1, 2, 3]
        assert all(report.body.draining and report.body.healthy for report in opened)
