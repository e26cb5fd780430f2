"""A whole cluster in one process and in virtual time: gateway, router, agents, engines.

The services are the real ones; bus, store, HTTP and ZeroMQ are the carriers in memory. Messages
that are sent at most once are lost, doubled and delayed by a seeded fault plan. With trio's clock
jumping and its scheduler seeded, one seed is one history.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess, AgentSettings
from controlplane.gateway.flight import Sink
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.openai import Api, ClientError, read
from controlplane.gateway.routing import Hints
from controlplane.gateway.service import GatewayService, Surroundings
from controlplane.gateway.settings import GatewaySettings
from controlplane.registry.view import RegistryView
from controlplane.router.core import RouterCore
from controlplane.router.metrics import RouterMetrics
from controlplane.router.service import RouterService
from controlplane.router.settings import RouterSettings
from controlplane.runtime.service import Service
from proto.hashing import digest
from proto.ids import RequestId, ServiceId, WorkerId
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Delay, Deliver, Drop, Duplicate
from proto.wire.memory.http import Answer, MemoryHttp, Origin, Request
from proto.wire.memory.store import MemoryEtcd
from tests.unit.agents.engine import EVENTS, MODEL, REPLAY, URL, MemoryEngine

CLUSTER = "world"
SUBJECTS, KEYS = Subjects(CLUSTER), Keys(CLUSTER)
LOSSY = (".kv.", ".load.", ".progress.", ".ledger.")
STEP_S = 0.02
QUIET_S = 5.0
DONE = b"data: [DONE]\n\n"


@dataclass
class Faults:
    """Shares of the messages that nobody is promised."""

    rng: random.Random
    lost: float = 0.03
    doubled: float = 0.03
    late: float = 0.05

    def __call__(
        self, sender: str, subject: str, receiver: str
    ) -> Deliver | Drop | Delay | Duplicate:
        del sender, receiver
        if not any(kind in subject for kind in LOSSY):
            return Deliver()
        roll = self.rng.random()
        if roll < self.lost:
            return Drop()
        if roll < self.lost + self.doubled:
            return Duplicate()
        if roll < self.lost + self.doubled + self.late:
            return Delay(self.rng.uniform(0, 0.3))
        return Deliver()


class Client(Sink):
    """A `Sink` that remembers."""

    def __init__(self) -> None:
        self.worker = ""
        self.read = b""

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        del status, length
        self.worker = headers["x-tokenplane-worker"]

    def put(self, data: bytes) -> bool:
        self.read += data
        return True

    async def writable(self) -> None: ...

    def finish(self) -> None: ...


@dataclass
class World:
    """What a schedule may act on, and what came of it."""

    gateway: GatewayService
    router: RouterService
    engines: dict[WorkerId, MemoryEngine]
    secret: bytes
    rng: random.Random
    history: list[str] = field(default_factory=list)
    completed: int = 0

    async def ask(self, number: int, prompt: list[int]) -> None:
        """One client's request; ends whole or in one typed error."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": True}
        client = Client()
        try:
            await self.gateway.dispatcher.serve(
                RequestId(f"q{number}"),
                read(Api.COMPLETIONS, json.dumps(body).encode()),
                Hints(),
                client,
            )
        except ClientError as error:
            self.history.append(f"{number} {error.code}")
            return
        whole = client.read.endswith(DONE)
        assert whole or b'"error"' in client.read, "a stream ended without saying how"
        self.completed += whole
        self.history.append(f"{number} {client.worker} {whole}")

    def disagreements(self) -> list[str]:
        """Workers whose blocks the router has wrong."""
        index = self.router.core.index
        return [
            worker
            for worker, engine in self.engines.items()
            if index.digest(worker) != digest(sorted(engine.names(self.secret)))
        ]


def run(seed: int, engines: int = 3, requests: int = 60) -> World:
    """Play one history to its end; equal seeds give equal histories."""
    # Private, as trio offers no public way to make its scheduler's choices repeatable.
    vars(trio._core._run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    trio._core._run._r.seed(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_play, seed, engines, requests, clock=clock)


async def _play(seed: int, engines: int, requests: int) -> World:
    rng = random.Random(seed)
    async with _world(rng, engines) as world:
        stems = [[rng.randrange(1000) for _ in range(24)] for _ in range(6)]
        async with anyio.create_task_group() as clients:
            for number in range(requests):
                await anyio.sleep(rng.expovariate(20))
                prompt = rng.choice(stems) + [rng.randrange(1000) for _ in range(8)]
                clients.start_soon(world.ask, number, prompt)
                if rng.random() < 0.03:
                    victim = rng.choice(sorted(world.engines))
                    world.engines[victim].restart()
                    world.history.append(f"{victim} restarted")
        await anyio.sleep(QUIET_S)
    return world


@asynccontextmanager
async def _world(rng: random.Random, count: int) -> AsyncIterator[World]:
    faults = Faults(random.Random(rng.random()))
    etcd, http = MemoryEtcd(), MemoryHttp()
    engines = {WorkerId(f"e{i}"): MemoryEngine() for i in range(count)}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(MemoryHub(faults))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        secret = b""
        for worker, engine in engines.items():
            stack.enter_context(engine.replaying())
            http.origins[f"http://{worker}"] = _origin(engine)
            process = _agent_process(worker)
            secret = process.secret_bytes
            agent = AgentService(
                process,
                make_adapter(process.agent, engine, engine.frames),
                hub.connect(worker),
                etcd.connect(),
                CollectorRegistry(),
                clock=anyio.current_time,
                rng=random.Random(rng.random()),
            )
            await tasks.start(_run, agent)
        view = RegistryView(etcd.connect(), KEYS)
        await tasks.start(_run, view)
        router = _router(hub, view, random.Random(rng.random()))
        await tasks.start(_run, router)
        gateway = _gateway(hub, view, http, secret)
        tasks.start_soon(gateway.behind)
        await anyio.sleep(QUIET_S)
        assert [r.state for r in view.workers.values()] == ["ready"] * count
        yield World(gateway, router, engines, secret, rng)
        tasks.cancel_scope.cancel()


def _router(hub: MemoryHub, view: RegistryView, rng: random.Random) -> RouterService:
    settings, metrics = RouterSettings(), RouterMetrics(CollectorRegistry())
    core = RouterCore(settings, "router-1", rng)
    bus = hub.connect("router")
    return RouterService(settings, core, bus, SUBJECTS, view, metrics, clock=anyio.current_time)


def _gateway(hub: MemoryHub, view: RegistryView, http: MemoryHttp, secret: bytes) -> GatewayService:
    around = Surroundings(
        ServiceId("gateway-1"),
        secret,
        hub.connect("gateway"),
        http,
        SUBJECTS,
        view,
        GatewayMetrics(CollectorRegistry()),
        anyio.current_time,
    )
    return GatewayService(GatewaySettings(port=0), around)


def _agent_process(worker: WorkerId) -> AgentProcess:
    settings = {
        "worker": worker,
        "engine": "sim",
        "engine_url": URL,
        "public_url": f"http://{worker}",
        "events": EVENTS,
        "replay": REPLAY,
        "load_interval_s": 0.1,
        "retry_s": 0.1,
    }
    return AgentProcess(cluster=CLUSTER, agent=AgentSettings.model_validate(settings))


def _origin(engine: MemoryEngine) -> Origin:
    async def body(prompt: list[int]) -> AsyncGenerator[bytes]:
        await anyio.sleep(STEP_S)
        engine.serve(prompt)
        for token in range(4):
            yield f'data: {{"choices": [{{"text": "{token}"}}]}}\n\n'.encode()
            await anyio.sleep(STEP_S)
        yield DONE

    def origin(request: Request) -> Answer:
        prompt = json.loads(request.body)["prompt"]
        return Answer(200, body(prompt), {"content-type": "text/event-stream"})

    return origin


async def _run(service: Service, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await service.run(task_status=task_status)
