"""A whole agent between an engine in memory and a plain reader of what it says."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup
from prometheus_client import CollectorRegistry

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess, AgentSettings
from proto.ids import WorkerId
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.workers import WorkerRecord, WorkerState
from tests.unit.agents.engine import EVENTS, REPLAY, URL, MemoryEngine
from tests.unit.agents.reader import PlainReader, wait_until

WORKER = WorkerId("w")
SUBJECTS, KEYS = Subjects("test"), Keys("test")


class World:
    """Everything around an agent. `agent` is the one that runs now."""

    def __init__(self, **settings: object) -> None:
        self.engine = MemoryEngine()
        self.hub = MemoryHub()
        self.etcd = MemoryEtcd()
        self.bus = self.hub.connect("agent", outgoing_messages=4)
        self.store = self.etcd.connect()
        self.reader = PlainReader(self.hub.connect("reader"), SUBJECTS, WORKER)
        agent = {
            "worker": WORKER,
            "engine": "sim",
            "engine_url": URL,
            "events": EVENTS,
            "replay": REPLAY,
            "load_interval_s": 0.02,
            "misses_max": 2,
            "retry_s": 0.02,
            **settings,
        }
        self.settings = AgentProcess(cluster="test", agent=AgentSettings.model_validate(agent))
        self.agent = self.new_agent()

    def new_agent(self, clock: Callable[[], float] = anyio.current_time) -> AgentService:
        return AgentService(
            self.settings,
            make_adapter(self.settings.agent, self.engine, self.engine.frames),
            self.bus,
            self.store,
            CollectorRegistry(),
            clock=clock,
            rng=random.Random(1),
        )

    def record(self) -> WorkerRecord | None:
        self.etcd.expire()
        entry = self.etcd.entries.get(KEYS.worker(WORKER))
        return WorkerRecord.model_validate_json(entry.value) if entry else None

    def state(self) -> WorkerState | None:
        record = self.record()
        return record.state if record else None

    async def is_registered_as(self, state: WorkerState | None) -> None:
        await wait_until(lambda: self.state() == state)
        assert self.state() == state

    async def agrees(self) -> None:
        """The reader comes to hold what the engine caches."""
        await self.reader.holds(self.engine.names(self.settings.secret_bytes))


@asynccontextmanager
async def running(world: World) -> AsyncGenerator[tuple[World, TaskGroup], None]:
    """With an agent, which is cancelled at the end."""
    async with anyio.create_task_group() as readers:
        await readers.start(world.reader.run)
        with world.engine.replaying():
            async with anyio.create_task_group() as tasks:
                await tasks.start(world.agent.run)
                yield world, tasks
                tasks.cancel_scope.cancel()
        readers.cancel_scope.cancel()
