"""The router over a bus and a store: it repairs what is lost, and says no in time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from controlplane.registry.view import RegistryView
from controlplane.router.core import RouterCore
from controlplane.router.metrics import RouterMetrics
from controlplane.router.service import RouterService
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader
from proto.hashing import digest, unpack
from proto.ids import Incarnation, RequestId, WorkerId
from proto.kv import KvBatch, KvSnapshotChunk, KvSnapshotRequest, Tier
from proto.load import LoadReport
from proto.progress import Phase, Progress
from proto.route import Chosen, RouteReply, RouteRequest
from proto.subjects import Keys, Subjects
from proto.wire.errors import NoResponder, RequestRefused
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo
from tests.support.router_core import BLOCK, record

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

SUBJECTS, KEYS = Subjects("c"), Keys("c")
WORKER = WorkerId("w")
CHAIN = [11, 22, 33, 44]


def pack_names(names: list[int]) -> bytes:
    return b"".join(name.to_bytes(8, "little") for name in names)


class Agent:
    """An agent's side of the bus: numbers its batches, answers snapshots from what is true."""

    def __init__(self, bus: Bus) -> None:
        self.held: list[int] = []
        self.snapshots = 0
        self.refusals = 0
        self.producer = Producer(WORKER, Incarnation(1), lambda: 0.0)
        self._bus = bus
        self._replies = Producer(WORKER, Incarnation(1), lambda: 0.0)

    async def store(self, names: list[int], *, lose: bool = False) -> None:
        self.held += names
        sealed = self.producer.seal(KvBatch(WORKER, pack_names(names)))
        if not lose:
            await self._bus.publish(SUBJECTS.kv(WORKER), sealed)

    async def report(self) -> None:
        report = LoadReport(
            WORKER, 0, 0, 0, 0, 0, 0, self.producer.sequence, len(self.held), digest(self.held)
        )
        loads = Producer(WORKER, self.producer.incarnation, lambda: 0.0)
        await self._bus.publish(SUBJECTS.load(WORKER), loads.seal(report))

    async def snapshot(self, message: Message) -> bytes:
        asked = Reader[KvSnapshotRequest](KvSnapshotRequest).open(message.data).body
        self.snapshots += 1
        if self.refusals:
            self.refusals -= 1
            raise RequestRefused(503, "not now")
        names = self.held[asked.chunk : asked.chunk + 1]  # tiny chunks, so that there are several
        chunk = KvSnapshotChunk(
            worker=WORKER,
            incarnation=self.producer.incarnation,
            sequence=self.producer.sequence,
            snapshot=1,
            chunk=asked.chunk,
            last=asked.chunk + 1 >= len(self.held),
            tier=Tier.GPU,
            names=pack_names(names),
        )
        return self._replies.seal(chunk)


@asynccontextmanager
async def running(
    metrics: CollectorRegistry | None = None,
) -> AsyncIterator[tuple[RouterService, Agent, Bus, anyio.abc.TaskGroup]]:
    etcd = MemoryEtcd()
    store = etcd.connect()
    await store.put(KEYS.worker(WORKER), record("w").model_dump_json().encode())
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        agent = Agent(hub.connect("agent"))
        bus = hub.connect("router")
        view = RegistryView(store, KEYS)
        settings = RouterSettings(snapshot_grace_s=0.01)
        core = RouterCore(settings, "r1", random.Random(0))
        service = RouterService(
            settings, core, bus, SUBJECTS, view, RouterMetrics(metrics or CollectorRegistry())
        )
        endpoint = Endpoint("snapshot", SUBJECTS.snapshot(WORKER), agent.snapshot)
        async with hub.connect("agent").serve(ServiceInfo("agent", "1.0.0"), [endpoint]):
            await tasks.start(_run, view.run)
            await tasks.start(_run, service.run)
            yield service, agent, hub.connect("gateway"), tasks
            tasks.cancel_scope.cancel()


async def _run(run: Callable[..., object], *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await run(task_status=task_status)  # type: ignore[misc]


async def until(condition: Callable[[], bool], what: str) -> None:
    with anyio.fail_after(10):
        while True:
            if condition():
                return
            await anyio.sleep(0.01)
    pytest.fail(what)


async def route(bus: Bus, data: bytes | None = None) -> RouteReply:
    request = RouteRequest(RequestId("1"), "m", 4 * BLOCK, {BLOCK: pack_names(CHAIN)})
    sealed = data or Producer("gw", Incarnation(1), lambda: 0.0).seal(request)
    answer = await bus.request(SUBJECTS.route, sealed, timeout_s=5)
    return Reader[RouteReply](RouteReply).open(answer.data).body


async def test_events_become_overlap(anyio_backend: str) -> None:
    async with running() as (service, agent, bus, _):
        await agent.store(CHAIN)
        await until(lambda: service.core.index.count(WORKER) == 4, "the batch was not applied")
        reply = await route(bus)
        assert isinstance(reply, Chosen)
        assert reply.overlap_blocks == 4


async def test_kr22_what_it_takes_and_expects_is_measured(anyio_backend: str) -> None:
    metrics = CollectorRegistry()
    async with running(metrics) as (service, agent, bus, _):
        await agent.store(CHAIN)
        await until(lambda: service.core.index.count(WORKER) == 4, "the batch was not applied")
        await route(bus)
        for measured in ("decision_seconds", "kv_lag_seconds", "predicted_hit_ratio"):
            assert metrics.get_sample_value(f"tokenplane_router_{measured}_count") == 1
        assert metrics.get_sample_value("tokenplane_router_predicted_hit_ratio_sum") == 1.0


async def test_a_lost_batch_is_repaired_by_a_snapshot_in_chunks(anyio_backend: str) -> None:
    async with running() as (service, agent, _, _):
        await agent.store(CHAIN[:1])
        await agent.store(CHAIN[1:3], lose=True)
        await agent.store(CHAIN[3:])
        await until(lambda: service.core.index.digest(WORKER) == digest(CHAIN), "not repaired")
        assert agent.snapshots >= len(CHAIN)


async def test_a_loss_at_the_end_is_found_by_the_next_load_report(anyio_backend: str) -> None:
    async with running() as (service, agent, _, _):
        await agent.store(CHAIN, lose=True)
        await agent.report()
        await until(lambda: service.core.index.digest(WORKER) == digest(CHAIN), "not repaired")


async def test_silent_drift_is_found_by_the_digest(anyio_backend: str) -> None:
    async with running() as (service, agent, _, _):
        await agent.store(CHAIN)
        await until(lambda: service.core.index.count(WORKER) == 4, "the batch was not applied")
        agent.held[0] = 99  # the engine's cache is no longer what we were told
        await agent.report()
        await until(lambda: service.core.index.digest(WORKER) == digest(agent.held), "not repaired")


async def test_an_agent_that_does_not_answer_is_asked_again(anyio_backend: str) -> None:
    async with running() as (service, agent, _, _):
        agent.refusals = 2
        await agent.store(CHAIN, lose=True)
        await agent.report()
        await until(lambda: service.core.index.digest(WORKER) == digest(CHAIN), "not repaired")


async def test_garbage_is_skipped_and_a_garbled_question_refused(anyio_backend: str) -> None:
    async with running() as (service, agent, bus, _):
        for subject in (SUBJECTS.kv(WORKER), SUBJECTS.load(WORKER), SUBJECTS.progress(WORKER)):
            await bus.publish(subject, b"\xc1garbage")
        with pytest.raises(RequestRefused, match="400"):
            await route(bus, b"garbage")
        await agent.store(CHAIN)
        await until(lambda: service.core.index.count(WORKER) == 4, "the router fell over")


async def test_replicas_hear_of_bookings_and_gateways_end_them(anyio_backend: str) -> None:
    async with running() as (service, _, bus, _):
        async with bus.subscribe(SUBJECTS.every_ledger) as bookings:
            await route(bus)
            with anyio.fail_after(5):
                async for _ in bookings:
                    break
        assert service.core.ledger.of(WORKER).requests == 1
        gateway = Producer("gw", Incarnation(1), lambda: 0.0)
        ended = Progress(RequestId("1"), WORKER, 1, Phase.ENDED)
        await bus.publish(SUBJECTS.progress(WORKER), gateway.seal(ended))
        await until(lambda: service.core.ledger.of(WORKER).requests == 0, "not freed")


async def test_a_drained_router_leaves_its_group(anyio_backend: str) -> None:
    async with running() as (service, _, bus, _):
        await route(bus)
        with anyio.fail_after(5):
            await service.drain()
        with pytest.raises(NoResponder):
            await route(bus)


def test_names_are_read_as_they_were_packed(anyio_backend: str) -> None:
    assert unpack(pack_names(CHAIN)) == CHAIN
