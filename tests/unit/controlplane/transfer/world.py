"""A coordinator, or several, over a bus in memory; a fleet, and agents that obey."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
from prometheus_client import CollectorRegistry

from controlplane.gateway.tickets import Tickets as GatewayTickets
from controlplane.registry.view import RegistryView
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.service import TransferService
from controlplane.transfer.settings import TransferSettings
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, ServiceId, WorkerId
from proto.load import LoadReport
from proto.subjects import Keys, Subjects
from proto.transfers import (
    Begin,
    BeginReply,
    Command,
    CommandReply,
    Evacuate,
    Evacuated,
    Move,
    MoveReply,
    Outcome,
    Part,
    Report,
    ReportReply,
    Step,
    Ticket,
    Tickets,
    Transition,
    Verb,
)
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Fault, faultless
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo
from proto.workers import Hardware, KvTransfer, Role, WorkerRecord, WorkerState

SUBJECTS, KEYS = Subjects("c"), Keys("c")
MODEL = "m"
BLOCK = 16
TRANSFER = KvTransfer(connector="sim", block_bytes=1 << 10)
GATEWAY = ServiceId("gateway-1")
DEADLINE_S = 10.0


def record(worker: str, role: Role, **changes: object) -> WorkerRecord:
    plain = WorkerRecord(
        worker=WorkerId(worker),
        incarnation=1,
        model=MODEL,
        engine="sim",
        url=f"http://{worker}",
        role=role,
        state=WorkerState.READY,
        block_tokens=BLOCK,
        total_blocks=1 << 20,
        transfer=TRANSFER,
        hardware=Hardware(topology={"host": "h"}),
    )
    return plain.model_copy(update=changes)


def load(worker: str, **changes: int) -> LoadReport:
    fields = {
        "running": 0,
        "waiting": 0,
        "queued_prefill_tokens": 0,
        "used_blocks": 0,
        "live_blocks": 0,
        **changes,
    }
    return LoadReport(
        WorkerId(worker),
        fields["running"],
        fields["waiting"],
        fields["queued_prefill_tokens"],
        0,
        fields["used_blocks"],
        4096,
        0,
        fields["live_blocks"],
        0,
    )


def begin(request: str = "r", tokens: int = 4096, prefill: str | None = "p0") -> Begin:
    part = None if prefill is None else Part(WorkerId(prefill), 1, tokens)
    return Begin(RequestId(request), MODEL, GATEWAY, tokens, Part(WorkerId("d0"), 1, tokens), part)


@dataclass
class Agents:
    """Every worker's agent: remembers what it was told, answers as it is set to."""

    told: list[tuple[str, Verb]] = field(default_factory=list)
    outcome: Outcome = Outcome.DONE
    answers: dict[Verb, CommandReply] = field(default_factory=dict)
    """What differs from `outcome` alone."""
    takes_s: float = 0.0
    """To fetch."""

    @asynccontextmanager
    async def serving(self, bus: Bus, workers: list[str]) -> AsyncIterator[None]:
        reader = Reader[Command](Command)
        async with AsyncExitStack() as stack:
            for worker in workers:
                producer = Producer(ServiceId(worker), Incarnation(1), lambda: 0.0)

                async def obey(
                    message: Message, worker: str = worker, producer: Producer = producer
                ) -> bytes:
                    verb = reader.open(message.data).body.verb
                    self.told.append((worker, verb))
                    if verb is Verb.REPLICATE:
                        await anyio.sleep(self.takes_s)
                    return producer.seal(self.answers.get(verb, CommandReply(self.outcome)))

                endpoints = [
                    Endpoint(verb.value, SUBJECTS.agent(WorkerId(worker), verb), obey)
                    for verb in Verb
                ]
                await stack.enter_async_context(bus.serve(ServiceInfo("agent", "1.0.0"), endpoints))
            yield


class Asker:
    """A gateway's side of the bus."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._producer = Producer(GATEWAY, Incarnation(1), lambda: 0.0)
        self._begins = Reader[BeginReply](BeginReply)
        self._reports = Reader[ReportReply](ReportReply)
        self._tickets = Reader[Tickets](Tickets)

    async def begin(self, asked: Begin) -> BeginReply:
        sealed = self._producer.seal(asked)
        answer = await self._bus.request(SUBJECTS.transfer("begin"), sealed, timeout_s=DEADLINE_S)
        return self._begins.open(answer.data).body

    async def move(self, asked: Move) -> MoveReply:
        sealed = self._producer.seal(asked)
        answer = await self._bus.request(SUBJECTS.transfer("move"), sealed, timeout_s=DEADLINE_S)
        return Reader[MoveReply](MoveReply).open(answer.data).body

    async def evacuate(self, said: Evacuate) -> Evacuated:
        sealed = self._producer.seal(said)
        answer = await self._bus.request(
            SUBJECTS.transfer("evacuate"), sealed, timeout_s=DEADLINE_S
        )
        return Reader[Evacuated](Evacuated).open(answer.data).body

    async def report(self, ticket: Ticket, step: Step, **news: object) -> ReportReply:
        return await self.say(Report(ticket.id, ticket.fence, step, **news))  # type: ignore[arg-type]

    async def say(self, said: Report) -> ReportReply:
        sealed = self._producer.seal(said)
        answer = await self._bus.request(SUBJECTS.transfer("report"), sealed, timeout_s=DEADLINE_S)
        return self._reports.open(answer.data).body


class World:
    """What a test may look at."""

    def __init__(self, hub: MemoryHub, etcd: MemoryEtcd) -> None:
        self.hub = hub
        self.etcd = etcd
        self.agents = Agents()
        self.asker = Asker(hub.connect("gateway"))
        self.services: list[TransferService] = []
        self.metrics: list[CollectorRegistry] = []
        self.seen: list[Transition] = []
        self._news = anyio.Event()

    async def listen(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        reader = Reader[Transition](Transition)
        async with self.hub.connect("ears").subscribe(SUBJECTS.transitions) as messages:
            task_status.started()
            async for message in messages:
                self.seen.append(reader.open(message.data).body)

    async def put(self, *records: WorkerRecord) -> None:
        store = self.etcd.connect()
        for each in records:
            await store.put(KEYS.worker(each.worker), each.model_dump_json().encode())

    async def tell(self, *reports: LoadReport) -> None:
        bus = self.hub.connect("agents")
        for each in reports:
            producer = Producer(ServiceId(each.worker), Incarnation(1), lambda: 0.0)
            await bus.publish(SUBJECTS.load(each.worker), producer.seal(each))

    def service(self, name: str, settings: TransferSettings) -> TransferService:
        view = RegistryView(self.etcd.connect(), KEYS)
        self.metrics.append(CollectorRegistry())
        service = TransferService(
            settings,
            self.hub.connect(name),
            SUBJECTS,
            view,
            TransferMetrics(self.metrics[-1]),
            service=ServiceId(name),
            clock=anyio.current_time,
        )
        self.services.append(service)
        return service


async def run(service: TransferService, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    """The service and the view it follows."""
    async with anyio.create_task_group() as tasks:
        view = service._view
        await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        await service.run(task_status=task_status)


@asynccontextmanager
async def world(
    *records: WorkerRecord, replicas: int = 1, fault: Fault = faultless, **settings: object
) -> AsyncIterator[World]:
    """With `replicas` coordinators, ready."""
    fleet = records or (record("p0", Role.PREFILL), record("d0", Role.DECODE))
    quick = TransferSettings.model_validate({"sweep_s": 0.02, "duty_s": 0.2, **settings})
    made = World(MemoryHub(fault), MemoryEtcd())
    async with (
        made.hub,
        anyio.create_task_group() as tasks,
        made.agents.serving(made.hub.connect("agents"), [each.worker for each in fleet]),
    ):
        await made.put(*fleet)
        await tasks.start(made.listen)
        for number in range(replicas):
            await tasks.start(run, made.service(f"transfer-{number}", quick))
        yield made
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def asking(made: World) -> AsyncIterator[GatewayTickets]:
    """A gateway's own way to ask, patient for a second."""
    producer = Producer(GATEWAY, Incarnation(1), lambda: 0.0)
    tickets = GatewayTickets(made.hub.connect("asking"), SUBJECTS, producer, begin_s=1.0)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tickets.run)
        yield tickets
        tasks.cancel_scope.cancel()
