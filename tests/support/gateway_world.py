"""A gateway between two engines and a router, all in memory, for tests of what it does."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry

from controlplane.gateway.flight import Sink
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.openai import Api, read
from controlplane.gateway.routing import Hints
from controlplane.gateway.service import GatewayService, Surroundings
from controlplane.gateway.settings import GatewaySettings
from controlplane.registry.view import RegistryView
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, ServiceId
from proto.progress import Phase, Progress
from proto.records import RequestRecord
from proto.route import NO_WORKER, Chosen, Rejected, RouteReply, RouteRequest
from proto.subjects import Keys, Subjects
from proto.wire.errors import HttpBroken
from proto.wire.http import HttpServer
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.http import Answer, MemoryHttp, Request
from proto.wire.memory.store import MemoryEtcd, MemoryStore
from proto.wire.ports import Endpoint, Http, Message, ServiceInfo, StreamSpec
from proto.workers import ModelCard, WorkerRecord
from tests.support.router_core import record

SUBJECTS, KEYS = Subjects("c"), Keys("c")
SETTINGS = GatewaySettings(port=0, route_s=0.5, first_token_s=0.5, gap_s=0.3, total_s=5.0)
PIECES = [f'data: {{"choices": [{{"text": "{i}"}}]}}\n\n'.encode() for i in range(3)]
DONE = b"data: [DONE]\n\n"
NO_HINTS = Hints()
FLEET = (record("a"), record("b"))


class Client(Sink):
    """A `Sink` that reads at once."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.read = b""

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        self.status, self.headers = status, headers

    def put(self, data: bytes) -> bool:
        self.read += data
        return True

    async def writable(self) -> None: ...

    def finish(self) -> None: ...


async def whole() -> AsyncGenerator[bytes]:
    for piece in (*PIECES, DONE):
        yield piece


async def silent() -> AsyncGenerator[bytes]:
    await anyio.sleep(60)
    yield b""


async def silent_later() -> AsyncGenerator[bytes]:
    yield PIECES[0]
    await anyio.sleep(60)


async def broken_at_once() -> AsyncGenerator[bytes]:
    raise HttpBroken("died")
    yield b""


async def broken_later() -> AsyncGenerator[bytes]:
    yield PIECES[0] + PIECES[1][:9]
    raise HttpBroken("died")


async def cut_short() -> AsyncGenerator[bytes]:
    yield PIECES[0]


def with_adapter(name: str) -> Sequence[WorkerRecord]:
    """The fleet, whose engine `b` has a LoRA adapter."""
    return record("a"), record("b", adapters=(name,))


def asked(**fields: object) -> bytes:
    """The body of a streamed completion."""
    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 3, "stream": True, **fields}
    return json.dumps(body).encode()


@dataclass
class World:
    """A gateway between two engines and a router, all in memory."""

    gateway: GatewayService
    http: MemoryHttp
    hub: MemoryHub
    registry: CollectorRegistry
    store: MemoryStore
    view: RegistryView
    stop: Callable[[], None]
    """Cancel the gateway, if it is behind an HTTP server."""
    fleet: Sequence[WorkerRecord]
    progress: list[Progress] = field(default_factory=list)
    heard: anyio.Event = field(default_factory=anyio.Event)
    """There is more of `progress`."""
    records: list[RequestRecord] = field(default_factory=list)
    routed: list[RouteRequest] = field(default_factory=list)
    replies: list[RouteReply | None] = field(default_factory=list)
    """What the router says before it says what it would; None: nothing in time."""

    def engine(
        self, name: str, body: Callable[[], AsyncGenerator[bytes]], status: int = 200
    ) -> None:
        def origin(request: Request) -> Answer:
            del request
            return Answer(status, body(), {"content-type": "text/event-stream"})

        self.http.origins[f"http://{name}"] = origin

    async def route(self, message: Message) -> bytes:
        request = Reader[RouteRequest](RouteRequest).open(message.data).body
        self.routed.append(request)
        if self.replies:
            prepared = self.replies.pop(0)
            if prepared is not None:
                return Producer("r", Incarnation(1), lambda: 0.0).seal(prepared)
            await anyio.sleep(SETTINGS.route_s)  # until nobody waits for it any more
        pool = [each for each in self.fleet if each.model == request.model]
        free = [each for each in pool if each.worker not in request.exclude]
        reply: RouteReply = Rejected(NO_WORKER, "nobody is left")
        if free:
            reply = Chosen(free[0].worker, 1, free[0].url, "r", "kv", 0, 16)
        return Producer("r", Incarnation(1), lambda: 0.0).seal(reply)

    async def serve(self, client: Client, hints: Hints = NO_HINTS, **fields: object) -> None:
        ask = read(Api.COMPLETIONS, asked(**fields))
        await self.gateway.dispatcher.serve(RequestId("q1"), ask, hints, client)

    async def told(self, ends: int = 1) -> list[Progress]:
        """What routers and agents have heard, once they have heard of so many ends."""
        with anyio.fail_after(5):
            while sum(each.phase is Phase.ENDED for each in self.progress) < ends:
                self.heard = anyio.Event()
                await self.heard.wait()
        return self.progress


@asynccontextmanager
async def world(
    *,
    router: bool = True,
    settings: GatewaySettings = SETTINGS,
    http_server: bool = False,
    watched: bool = False,
    fleet: Sequence[WorkerRecord] = FLEET,
    carrier: Http | None = None,
) -> AsyncIterator[World]:
    """Engines are in memory, or reached over a `carrier`. `watched`: streams that stand still are
    looked for."""
    store = MemoryEtcd().connect()
    for each in fleet:
        card = ModelCard(name=each.model, context_tokens=100)
        await store.put(KEYS.model(each.model), card.model_dump_json().encode())
        await store.put(KEYS.worker(each.worker), each.model_dump_json().encode())
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        view, http, bus = RegistryView(store, KEYS), MemoryHttp(), hub.connect("gateway")
        registry = CollectorRegistry()
        metrics = GatewayMetrics(registry)
        around = Surroundings(
            ServiceId("gw"),
            b"k",
            bus,
            carrier or http,
            SUBJECTS,
            view,
            metrics,
            lambda: 1_000.0,
            HttpServer(),
        )
        service, scope = GatewayService(settings, around), anyio.CancelScope()
        ours = World(service, http, hub, registry, store, view, scope.cancel, fleet)

        async def run_gateway(*, task_status: TaskStatus[None]) -> None:
            with scope:
                await service.run(task_status=task_status)

        await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        if http_server:
            await tasks.start(run_gateway)
        else:
            tasks.start_soon(service.behind)
        if watched:
            tasks.start_soon(ours.gateway.health.run)
        tasks.start_soon(_collect, ours)
        endpoint = Endpoint("route", SUBJECTS.route, ours.route)
        if router:
            async with hub.connect("r").serve(ServiceInfo("router", "1.0.0"), [endpoint]):
                yield ours
        else:
            yield ours
        tasks.cancel_scope.cancel()


async def _collect(ours: World) -> None:
    reader = Reader[Progress](Progress)
    async with ours.hub.connect("listener").subscribe(SUBJECTS.every_progress) as messages:
        async for message in messages:
            ours.progress.append(reader.open(message.data).body)
            ours.heard.set()


async def records(ours: World, count: int) -> list[RequestRecord]:
    """The first `count` records of the stream, as the planner would read them."""
    planner = ours.hub.connect("planner")
    stream = StreamSpec(SUBJECTS.requests_stream, (SUBJECTS.requests,), 60.0, 1 << 20)
    reader = Reader[RequestRecord](RequestRecord)
    found: list[RequestRecord] = []
    with anyio.fail_after(5):
        await planner.ensure_stream(stream)
        async with planner.consume(SUBJECTS.requests_stream) as deliveries:
            async for delivery in deliveries:
                found.append(reader.open(delivery.message.data).body)
                if len(found) == count:
                    break
    return found
