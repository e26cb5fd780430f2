"""A new replica over real NATS: it knows what the others have given out before it serves."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from anyio.abc import TaskGroup, TaskStatus
from prometheus_client import CollectorRegistry

from controlplane.registry.view import RegistryView
from controlplane.router import replicas
from controlplane.router.core import RouterCore
from controlplane.router.metrics import RouterMetrics
from controlplane.router.replicas import NEWS_MAX, PART_BOOKINGS, Replicas
from controlplane.router.service import RouterService
from controlplane.router.settings import RouterSettings
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, WorkerId
from proto.progress import Booking, Bookings, BookingsRequest, Phase, Progress, Withdrawn
from proto.route import Chosen, RouteReply
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.wire.nats import NatsBus, NatsSettings
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo
from tests.support.nats_server import NatsServer, nats_server
from tests.support.router_core import question, record
from tests.unit.controlplane.router.test_service import until

pytestmark = pytest.mark.anyio

SUBJECTS, KEYS = Subjects("c"), Keys("c")
WORKERS = [WorkerId(name) for name in ("a", "b", "c")]
MANY = 2 * PART_BOOKINGS + 500


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with nats_server(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def etcd() -> MemoryEtcd:
    etcd = MemoryEtcd()
    store = etcd.connect()
    for worker in WORKERS:
        await store.put(KEYS.worker(worker), record(worker).model_dump_json().encode())
    return etcd


@asynccontextmanager
async def connected(nats: NatsServer) -> AsyncIterator[NatsBus]:
    async with NatsBus(NatsSettings(servers=(nats.url,))) as bus:
        yield bus


class Agents:
    """Workers' agents that let a snapshot wait until the test goes on."""

    def __init__(self) -> None:
        self.asked = anyio.Event()
        self.go_on = anyio.Event()

    async def snapshot(self, message: Message) -> bytes:
        self.asked.set()
        await self.go_on.wait()
        return b"no snapshot"


async def start(
    tasks: TaskGroup, name: str, bus: Bus, etcd: MemoryEtcd, **changes: float
) -> RouterService:
    """A router that says ready."""
    view = RegistryView(etcd.connect(), KEYS)
    settings = RouterSettings(snapshot_grace_s=0.0).model_copy(update=changes)
    core = RouterCore(settings, name, random.Random(0))
    service = RouterService(settings, core, bus, SUBJECTS, view, RouterMetrics(CollectorRegistry()))

    async def run(part: RegistryView | RouterService, *, task_status: TaskStatus[None]) -> None:
        await part.run(task_status=task_status)

    await tasks.start(run, view)
    await tasks.start(run, service)
    return service


def owed(service: RouterService) -> list[tuple[int, int, int]]:
    ledger = service.core.ledger
    each = [ledger.of(worker) for worker in WORKERS]
    return [(w.requests, w.prefill_tokens, w.decode_blocks) for w in each]


def booking(number: int) -> Booking:
    return Booking(RequestId(f"{number:05}"), WORKERS[number % 3], 100 + number, 7, 1 + number % 2)


def said(number: int, phase: Phase) -> Progress:
    of = booking(number)
    return Progress(of.request, of.worker, of.attempt, phase)


async def test_a_new_replica_has_the_others_ledger_before_it_serves(
    nats: NatsServer, etcd: MemoryEtcd
) -> None:
    agents, gateway = Agents(), Producer("gw", Incarnation(1), lambda: 0.0)
    async with connected(nats) as one, connected(nats) as two, anyio.create_task_group() as tasks:
        old = await start(tasks, "old", one, etcd)
        for number in range(MANY):
            old.core.booked_elsewhere(booking(number), anyio.current_time())
        old.core.progress(said(0, Phase.FIRST_TOKEN), anyio.current_time())
        ready: list[RouterService] = []

        async def come() -> None:
            ready.append(await start(tasks, "new", two, etcd))

        endpoints = [
            Endpoint(f"snapshot-{w}", SUBJECTS.snapshot(w), agents.snapshot) for w in WORKERS
        ]
        async with one.serve(ServiceInfo("agents", "1.0.0"), endpoints):
            tasks.start_soon(come)
            await agents.asked.wait()  # it listens, and has yet to ask for bookings
            told = Replicas(one, SUBJECTS, old.core, Producer("old", Incarnation(1), lambda: 0.0))
            tasks.start_soon(told.tell)
            for number in (1, 2, MANY):  # two that it will hear of again, and a fresh one
                old.core.booked_elsewhere(booking(number), anyio.current_time())
                told.note(booking(number))
            for number, phase in ((3, Phase.ENDED), (4, Phase.FIRST_TOKEN)):
                heard = gateway.seal(said(number, phase))
                await one.publish(SUBJECTS.progress(booking(number).worker), heard)
            assert not ready
            agents.go_on.set()
            await until(lambda: bool(ready), "the new replica is not ready")
        [new] = ready
        assert len(old.core.ledger) == MANY
        await until(lambda: owed(new) == owed(old), "the replicas do not agree")
        tasks.cancel_scope.cancel()


async def test_replicas_share_requests_and_know_of_each_others(
    nats: NatsServer, etcd: MemoryEtcd
) -> None:
    reader = Reader[RouteReply](RouteReply)
    async with (
        connected(nats) as one,
        connected(nats) as two,
        connected(nats) as gateway,
        anyio.create_task_group() as tasks,
    ):
        routers = [await start(tasks, "r1", one, etcd), await start(tasks, "r2", two, etcd)]
        producer = Producer("gw", Incarnation(1), lambda: 0.0)
        by: list[str] = []
        for number in range(30):
            sealed = producer.seal(question(str(number), blocks={}))
            reply = reader.open((await gateway.request(SUBJECTS.route, sealed, timeout_s=5)).data)
            assert isinstance(reply.body, Chosen)
            by.append(reply.body.router)
        assert set(by) == {"r1", "r2"}
        await until(lambda: all(len(r.core.ledger) == 30 for r in routers), "not all is heard")
        assert owed(routers[0]) == owed(routers[1])
        tasks.cancel_scope.cancel()


async def test_what_is_withdrawn_before_the_others_are_told_of_it_is_not_told() -> None:
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        core = RouterCore(RouterSettings(), "old", random.Random(0))
        producer = Producer("old", Incarnation(1), lambda: 0.0)
        ours = Replicas(hub.connect("old"), SUBJECTS, core, producer)
        async with hub.connect("other").subscribe(SUBJECTS.every_ledger) as messages:
            tasks.start_soon(ours.tell)
            for number in (1, 2):
                ours.note(booking(number))
            core.withdraw(Withdrawn(booking(1).request, booking(1).attempt), 0.0)
            with anyio.fail_after(5):
                message = await anext(aiter(messages))
            assert Reader[Bookings](Bookings).open(message.data).body.bookings == (booking(2),)
        tasks.cancel_scope.cancel()


async def test_a_replica_that_dies_over_the_question_leaves_it_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replicas, "PART_S", 0.05)
    answers = iter([None, Bookings((booking(1),), last=False), None, Bookings((), last=True)])
    asked: list[BookingsRequest] = []

    async def answer(message: Message) -> bytes:
        asked.append(Reader[BookingsRequest](BookingsRequest).open(message.data).body)
        if (body := next(answers)) is None:
            await anyio.sleep(0.2)
            body = Bookings((), last=True)  # too late
        return Producer("old", Incarnation(1), lambda: 0.0).seal(body)

    async with MemoryHub() as hub:
        endpoint = Endpoint("bookings", SUBJECTS.bookings, answer)
        core = RouterCore(RouterSettings(), "new", random.Random(0))
        producer = Producer("new", Incarnation(1), lambda: 0.0)
        new = Replicas(hub.connect("new"), SUBJECTS, core, producer)
        async with hub.connect("old").serve(ServiceInfo("router", "1.0.0"), [endpoint]):
            await new.learn()
        after = BookingsRequest(booking(1).worker, booking(1).request)
        assert asked == [BookingsRequest()] * 2 + [after] * 2
        assert len(core.ledger) == 1


async def test_a_replica_that_has_more_and_does_not_say_what_keeps_nobody_from_serving() -> None:
    async def answer(message: Message) -> bytes:
        return Producer("old", Incarnation(1), lambda: 0.0).seal(Bookings((), last=False))

    async with MemoryHub() as hub:
        endpoint = Endpoint("bookings", SUBJECTS.bookings, answer)
        core = RouterCore(RouterSettings(), "new", random.Random(0))
        producer = Producer("new", Incarnation(1), lambda: 0.0)
        async with hub.connect("old").serve(ServiceInfo("router", "1.0.0"), [endpoint]):
            await Replicas(hub.connect("new"), SUBJECTS, core, producer).learn()
        assert len(core.ledger) == 0


async def test_many_bookings_are_told_in_messages_that_nats_takes(nats: NatsServer) -> None:
    """As long as names may be, and as many as may wait; then one that is too large whatever."""
    long = [
        Booking(
            RequestId(f"{number:0128}"), WorkerId("w" * 128), 1 << 40, 1 << 40, 1, (1 << 64) - 1
        )
        for number in range(NEWS_MAX)
    ]
    core = RouterCore(RouterSettings(), "old", random.Random(0))
    producer, heard = Producer("old", Incarnation(1), lambda: 0.0), list[Booking]()
    async with (
        connected(nats) as one,
        connected(nats) as two,
        two.subscribe(SUBJECTS.every_ledger) as messages,
        anyio.create_task_group() as tasks,
    ):
        ours = Replicas(one, SUBJECTS, core, producer)
        tasks.start_soon(ours.tell)
        for each in long:
            ours.note(each)
        reader = Reader[Bookings](Bookings)
        with anyio.fail_after(20):
            async for message in messages:
                heard += reader.open(message.data).body.bookings
                if len(heard) == len(long):
                    break
            assert heard == long
            ours.note(msgspec.structs.replace(long[0], request=RequestId("x" * (1 << 20))))

            async def go_on() -> None:
                while True:
                    ours.note(long[0])
                    await anyio.sleep(replicas.GATHER_S)

            tasks.start_soon(go_on)
            message = await anext(aiter(messages))
            assert set(reader.open(message.data).body.bookings) == {long[0]}
        tasks.cancel_scope.cancel()


async def test_a_replica_that_answers_nonsense_keeps_nobody_from_serving() -> None:
    async def answer(message: Message) -> bytes:
        return b"nonsense"

    async with MemoryHub() as hub:
        endpoint = Endpoint("bookings", SUBJECTS.bookings, answer)
        core = RouterCore(RouterSettings(), "new", random.Random(0))
        producer = Producer("new", Incarnation(1), lambda: 0.0)
        async with hub.connect("old").serve(ServiceInfo("router", "1.0.0"), [endpoint]):
            await Replicas(hub.connect("new"), SUBJECTS, core, producer).learn()
        assert len(core.ledger) == 0
