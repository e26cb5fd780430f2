"""A split fleet in one process and in virtual time, whose every part is killed as tickets go by.

The services are the real ones: gateway, router, two coordinators, agents. A schedule drawn by seed
hears every transition of a ticket, and at some of them kills an engine, an agent or a coordinator,
or cuts everybody off from the bus. Clients go away in the middle, too. Afterwards nothing may be
left: no staged block, no call, no place, no ticket, no booking.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import anyio
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess, AgentSettings
from controlplane.gateway.flight import ClientStalled
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
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.service import TransferService
from controlplane.transfer.settings import TransferSettings
from proto.codec import Reader
from proto.ids import RequestId, ServiceId, WorkerId
from proto.subjects import Keys, Subjects
from proto.transfers import State, Transition
from proto.wire.memory.bus import MemoryBus, MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.workers import Role
from tests.simulation.engines import DONE, SplitEngine, SplitHttp, answer
from tests.simulation.world import Client, Faults
from tests.unit.agents.engine import EVENTS, MODEL, REPLAY

T = TypeVar("T")

CLUSTER = "split"
SUBJECTS, KEYS = Subjects(CLUSTER), Keys(CLUSTER)
ROLES = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
REPLICAS = 2
RESTART_S, CUT_S = 0.7, 1.5
QUIET_S = 25.0
"""Less than a lease: what is left then was not let go of, and did not just run out."""
LEAVE_SHARE = 0.15
"""Of clients, that go away before their answer is whole."""
FAULT_SHARE = 0.3
"""Of transitions, that something dies at."""
TRANSFER = TransferSettings.model_validate(
    {"choice": "remote", "prefill_s": 4.0, "transfer_s": 4.0, "cancel_s": 1.0, "place_wait_s": 0.2}
)


@dataclass
class Split:
    """What is broken, and what came of it."""

    hub: MemoryHub
    rng: random.Random
    engines: dict[str, SplitEngine] = field(default_factory=dict)
    gateway: GatewayService | None = None
    router: RouterService | None = None
    coordinators: dict[str, TransferService] = field(default_factory=dict)
    buses: list[MemoryBus] = field(default_factory=list)
    scopes: dict[str, anyio.CancelScope] = field(default_factory=dict)
    faults: Counter[tuple[State, str]] = field(default_factory=Counter)
    """Inflicted, by the state that a ticket had just come to, and what died."""
    outcomes: Counter[str] = field(default_factory=Counter)
    cut: bool = False

    # --- what clients do

    async def ask(self, number: int, prompt: list[int], *, leaves: bool | None = None) -> None:
        """One request; whole, or one typed error, or left by its client."""
        assert self.gateway is not None
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": True}
        client = Client()
        leaves = self.rng.random() < LEAVE_SHARE if leaves is None else leaves
        with anyio.move_on_after(self.rng.uniform(0.05, 0.6) if leaves else 120) as patience:
            try:
                await self.gateway.dispatcher.serve(
                    RequestId(f"q{number}"),
                    read(Api.COMPLETIONS, json.dumps(body).encode()),
                    Hints(),
                    client,
                )
            except ClientError as error:
                assert not client.read
                self.outcomes[error.code] += 1
                return
            except ClientStalled:
                raise AssertionError("nobody was slow") from None
        said = [json.loads(e)["choices"][0]["text"] for e in _texts(client.read)]
        expected = answer(prompt)
        assert said == expected[: len(said)], f"a wrong token: {said} for {expected}"
        if patience.cancelled_caught:
            assert leaves, f"request {number} never ended"
            self.outcomes["left"] += 1
        elif client.read.endswith(DONE):
            assert said == expected, f"it looks whole and is not: {said}"
            self.outcomes["whole"] += 1
        else:
            assert client.read.count(b'"error"') == 1, "it did not say how it ended"
            self.outcomes["broken off"] += 1

    # --- what a schedule does

    async def haunt(self, tasks: anyio.abc.TaskGroup, *, task_status: object) -> None:
        """Hear every transition, and let something die at some."""
        reader = Reader[Transition](Transition)
        async with self.hub.connect("haunt").subscribe(SUBJECTS.transitions) as messages:
            task_status.started()  # type: ignore[attr-defined]
            async for message in messages:
                transition = reader.open(message.data).body
                if self.rng.random() < FAULT_SHARE:
                    await self._inflict(transition, tasks)

    async def lose_staged(self, *, task_status: object) -> None:
        """Hear every transition, and kill who prefilled when its blocks are to be read."""
        reader = Reader[Transition](Transition)
        async with self.hub.connect("thief").subscribe(SUBJECTS.transitions) as messages:
            task_status.started()  # type: ignore[attr-defined]
            async for message in messages:
                transition = reader.open(message.data).body
                if transition.after is State.TRANSFERRING:
                    self.faults[transition.after, "prefill engine"] += 1
                    await self._kill_engine(transition.prefill)

    async def _inflict(self, at: Transition, tasks: anyio.abc.TaskGroup) -> None:
        victims: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "prefill engine": partial(self._kill_engine, at.prefill),
            "decode engine": partial(self._kill_engine, at.decode),
            "prefill agent": partial(self._kill, f"agent-{at.prefill}"),
            "decode agent": partial(self._kill, f"agent-{at.decode}"),
            "coordinator": partial(self._kill, f"transfer-{self.rng.randrange(REPLICAS)}"),
            "bus": self._cut,
        }
        victim = self.rng.choice(sorted(victims))
        self.faults[at.after, victim] += 1
        tasks.start_soon(victims[victim])

    async def _kill_engine(self, name: str) -> None:
        engine = self.engines[name]
        if engine.alive:
            engine.kill()
            await anyio.sleep(RESTART_S)
            engine.start()

    async def _kill(self, part: str) -> None:
        self.scopes[part].cancel()

    async def _cut(self) -> None:
        if self.cut:
            return
        self.cut = True
        for bus in self.buses:
            bus.cut()
        try:
            await anyio.sleep(CUT_S)
        finally:  # also where the history ends in this very moment
            for bus in self.buses:
                bus.mend()
            self.cut = False

    # --- what must not be left

    def left(self) -> list[str]:
        """Everything that somebody still holds."""
        now_s = anyio.current_time()
        found = []
        for engine in self.engines.values():
            live = [kept for kept in engine.staged.values() if kept.until_s > now_s]
            found += [f"{engine.name}: {len(live)} staged"] * bool(live)
            found += [f"{engine.name}: {engine.busy} calls"] * bool(engine.busy)
        for name, service in self.coordinators.items():
            book = service.core.book
            found += [f"{name}: {t.state} {t.owed}" for t in book if t.state or t.owed]
            found += [f"{name}: {what} {held}" for what, held in book.sums().items() if held]
        return found

    # --- how it is put together

    def connect(self, name: str) -> MemoryBus:
        bus = self.hub.connect(name)
        if self.cut:
            bus.cut()
        self.buses.append(bus)
        return bus

    async def keep(self, name: str, make: Callable[[], list[Service]]) -> None:
        """Run a process; when it is killed it comes again a moment later."""
        while True:
            with anyio.CancelScope() as scope:
                self.scopes[name] = scope
                async with anyio.create_task_group() as tasks:
                    for service in make():
                        await tasks.start(_run, service)
            await anyio.sleep(RESTART_S)


def run(seed: int, requests: int = 60) -> Split:
    """Play one history to its end."""
    return _in_virtual_time(_play, seed, requests)


def run_unread(seed: int, requests: int) -> Split:
    """One prefills, one decodes, and what is staged is lost whenever it is about to be read."""
    return _in_virtual_time(_play_unread, seed, requests)


def run_whole(seed: int, requests: int) -> list[float]:
    """Answers that are not streamed, one after the other; returns how long each took."""
    return _in_virtual_time(_play_whole, seed, requests)


def _in_virtual_time(
    play: Callable[[int, int], Coroutine[Any, Any, T]], seed: int, requests: int
) -> T:
    vars(trio._core._run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
    trio._core._run._r.seed(seed)
    clock = trio.testing.MockClock(autojump_threshold=0)
    played: T = trio.run(play, seed, requests, clock=clock)
    return played


async def _play(seed: int, requests: int) -> Split:
    rng = random.Random(seed)
    async with _split(rng) as split, anyio.create_task_group() as tasks:
        with anyio.CancelScope() as haunting:
            await tasks.start(partial(split.haunt, tasks))
            async with anyio.create_task_group() as clients:
                for number in range(requests):
                    await anyio.sleep(rng.expovariate(8))
                    prompt = [rng.randrange(1000) for _ in range(12)]
                    clients.start_soon(split.ask, number, prompt)
            haunting.cancel()
        tasks.cancel_scope.cancel()
        await _settle(split)
    return split


async def _play_unread(seed: int, requests: int) -> Split:
    rng = random.Random(seed)
    async with (
        _split(rng, (Role.PREFILL, Role.DECODE)) as split,
        anyio.create_task_group() as tasks,
    ):
        await tasks.start(split.lose_staged)
        for number in range(requests):
            await split.ask(number, [rng.randrange(1000) for _ in range(12)], leaves=False)
            await anyio.sleep(12)  # until the prefill worker is believed again
        tasks.cancel_scope.cancel()
        await _settle(split)
    return split


async def _play_whole(seed: int, requests: int) -> list[float]:
    rng, took_s = random.Random(seed), []
    async with _split(rng, (Role.PREFILL, Role.DECODE)) as split:
        assert split.gateway is not None
        for number in range(requests):
            prompt, client, began_s = [number] * 12, Client(), anyio.current_time()
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "stream": False}
            asked = read(Api.COMPLETIONS, json.dumps(body).encode())
            await split.gateway.dispatcher.serve(RequestId(f"q{number}"), asked, Hints(), client)
            assert json.loads(client.read)["choices"][0]["text"] == "".join(answer(prompt))
            took_s.append(anyio.current_time() - began_s)
        await anyio.sleep(QUIET_S)
        assert split.left() == [], split.left()
    return took_s


async def _settle(split: Split) -> None:
    with anyio.CancelScope(shield=True):
        for engine in split.engines.values():
            if not engine.alive:
                engine.start()
        for bus in split.buses:
            bus.mend()
        split.cut = False
        calm = split.rng.randrange(1000)
        await anyio.sleep(QUIET_S)
        assert split.left() == [], split.left()
        before = split.outcomes["whole"]
        await _one_more(split, calm)
        assert split.outcomes["whole"] == before + 1, split.outcomes


async def _one_more(split: Split, salt: int) -> None:
    """After all of it a request is served as ever."""
    while True:
        before = split.outcomes.copy()
        await split.ask(10_000 + salt, [salt] * 12)
        if split.outcomes["left"] == before["left"]:
            return
        split.outcomes["left"] -= 1


@asynccontextmanager
async def _split(rng: random.Random, roles: Sequence[Role] = ROLES) -> AsyncIterator[Split]:
    faults = Faults(random.Random(rng.random()))
    etcd = MemoryEtcd()
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(MemoryHub(faults))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        split = Split(hub, rng)
        http = SplitHttp(split.engines)
        secret = b""
        for number, role in enumerate(roles):
            name = f"e{number}"
            engine = split.engines[name] = SplitEngine(name, split.engines)
            stack.enter_context(engine.replaying())
            process = _agent_process(name, role)
            secret = process.secret_bytes
            tasks.start_soon(
                split.keep, f"agent-{name}", partial(_agent, split, process, engine, http, etcd)
            )
        for number in range(REPLICAS):
            name = f"transfer-{number}"
            tasks.start_soon(split.keep, name, partial(_coordinator, split, name, etcd))
        view = RegistryView(etcd.connect(), KEYS)
        await tasks.start(_run, view)
        core = RouterCore(RouterSettings(), "router-1", random.Random(rng.random()))
        split.router = RouterService(
            RouterSettings(),
            core,
            split.connect("router"),
            SUBJECTS,
            view,
            RouterMetrics(CollectorRegistry()),
            clock=anyio.current_time,
        )
        await tasks.start(_run, split.router)
        split.gateway = _gateway(split, view, http, secret)
        tasks.start_soon(split.gateway.behind)
        await anyio.sleep(5)
        yield split
        tasks.cancel_scope.cancel()


def _agent(
    split: Split, process: AgentProcess, engine: SplitEngine, http: SplitHttp, etcd: MemoryEtcd
) -> list[Service]:
    agent = AgentService(
        process,
        make_adapter(process.agent, http, engine.frames),
        split.connect(f"agent-{engine.name}"),
        etcd.connect(),
        CollectorRegistry(),
        clock=anyio.current_time,
        rng=random.Random(1),
    )
    return [agent]


def _coordinator(split: Split, name: str, etcd: MemoryEtcd) -> list[Service]:
    view = RegistryView(etcd.connect(), KEYS)
    service = TransferService(
        TRANSFER,
        split.connect(name),
        SUBJECTS,
        view,
        TransferMetrics(CollectorRegistry()),
        service=ServiceId(name),
        clock=anyio.current_time,
    )
    split.coordinators[name] = service
    return [view, service]


def _gateway(split: Split, view: RegistryView, http: SplitHttp, secret: bytes) -> GatewayService:
    around = Surroundings(
        ServiceId("gateway-1"),
        secret,
        split.connect("gateway"),
        http,
        SUBJECTS,
        view,
        GatewayMetrics(CollectorRegistry()),
        anyio.current_time,
    )
    return GatewayService(GatewaySettings(port=0, ticket_s=1.0, retry_share=1.0), around)


def _agent_process(name: str, role: Role) -> AgentProcess:
    settings = {
        "worker": WorkerId(name),
        "engine": "sim",
        "engine_url": f"http://{name}",
        "events": EVENTS,
        "replay": REPLAY,
        "role": role.value,
        "load_interval_s": 0.25,
        "retry_s": 0.1,
    }
    return AgentProcess(cluster=CLUSTER, agent=AgentSettings.model_validate(settings))


def _texts(said: bytes) -> list[bytes]:
    events = [event.removeprefix(b"data: ") for event in said.split(b"\n\n")]
    return [event for event in events if event.startswith(b'{"choices"')]


async def _run(service: Service, *, task_status: anyio.abc.TaskStatus[None]) -> None:
    await service.run(task_status=task_status)
