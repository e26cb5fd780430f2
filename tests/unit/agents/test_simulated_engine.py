"""The agent beside a real process: `python -m workers.sim`, over HTTP and ZeroMQ."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import anyio
import pytest
from prometheus_client import CollectorRegistry

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess, AgentSettings
from controlplane.local.ports import free_ports
from proto.hashing import BlockHasher, Scope
from proto.ids import WorkerId
from proto.subjects import Keys, Subjects
from proto.wire.http import HttpClient
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Http
from proto.wire.zmq import ZmqFrames
from proto.workers import ModelCard, WorkerRecord, WorkerState
from tests.unit.agents.reader import PlainReader, wait_until

pytestmark = pytest.mark.anyio

WORKER = WorkerId("w")
SUBJECTS, KEYS = Subjects("test"), Keys("test")
BLOCKS, BLOCK_TOKENS = 24, 16


class Process:
    """A simulated engine on ports of its own, which it keeps when it is started again."""

    def __init__(self, *options: str) -> None:
        self.http, self.events, self.replay = free_ports(3)
        self._options = options
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        ports = ("--port", self.http, "--events-port", self.events, "--replay-port", self.replay)
        size = ("--blocks", BLOCKS, "--block-size", BLOCK_TOKENS, "--speed", 50)
        argv = [sys.executable, "-m", "workers.sim", *map(str, (*ports, *size)), *self._options]
        self._running = subprocess.Popen(argv, stdout=subprocess.DEVNULL)

    def kill(self) -> None:
        if self._running is not None:
            self._running.kill()
            self._running.wait()


@contextmanager
def engine(*options: str) -> Iterator[Process]:
    process = Process(*options)
    process.start()
    try:
        yield process
    finally:
        process.kill()


class World:
    """An agent of a real engine; the bus and the store are in memory."""

    def __init__(
        self, process: Process, http: Http, frames: ZmqFrames, more: dict[str, float]
    ) -> None:
        hub, self.etcd, self.metrics = MemoryHub(), MemoryEtcd(), CollectorRegistry()
        told: dict[str, object] = {
            "worker": WORKER,
            "engine": "sim",
            "engine_url": process.url,
            "events": f"tcp://127.0.0.1:{process.events}",
            "replay": f"tcp://127.0.0.1:{process.replay}",
            "load_interval_s": 0.05,
            "retry_s": 0.05,
        }
        settings = AgentSettings.model_validate({**told, **more})
        self._process = AgentProcess(cluster="test", agent=settings)
        self._url, self._http = process.url, http
        self.reader = PlainReader(hub.connect("reader"), SUBJECTS, WORKER)
        self.agent = AgentService(
            self._process,
            make_adapter(settings, http, frames),
            hub.connect("agent"),
            self.etcd.connect(),
            self.metrics,
        )

    async def is_registered_as(self, state: WorkerState) -> None:
        def registered() -> bool:
            entry = self.etcd.entries.get(KEYS.worker(WORKER))
            record = WorkerRecord.model_validate_json(entry.value) if entry else None
            return record is not None and record.state == state

        await wait_until(registered)
        assert registered()

    def metric(self, name: str, **labels: str) -> float:
        value = self.metrics.get_sample_value(f"tokenplane_agent_{name}", labels)
        assert value is not None
        return value

    def counted(self, name: str, **labels: str) -> float:
        """As `metric`; 0 where it has not been counted yet."""
        return self.metrics.get_sample_value(f"tokenplane_agent_{name}", labels) or 0.0

    async def speculates(self) -> bool:
        async with self._http.exchange("GET", f"{self._url}/speculation") as response:
            told: dict[str, bool] = json.loads(await response.read())
            return told["enabled"]

    async def complete(self, prompt: str, length: int = 2) -> set[int]:
        """Let the engine answer; returns the canonical names of the prompt's blocks."""
        body = {"model": "sim", "prompt": prompt, "max_tokens": length}
        await self._post("/v1/completions", body)
        tokens = (await self._post("/tokenize", {"model": "sim", "prompt": prompt}))["tokens"]
        hasher = BlockHasher(self._process.secret_bytes, Scope("sim"), BLOCK_TOKENS)
        return set(hasher.names(tokens).tolist())

    async def has_blocks(self, names: set[int]) -> None:
        """The reader knows these, at least: an engine caches what it generates, too."""
        await wait_until(lambda: self.reader.names >= names)
        assert self.reader.names >= names

    async def _post(self, path: str, body: dict[str, object]) -> dict[str, list[int]]:
        async with self._http.exchange(
            "POST",
            self._url + path,
            body=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        ) as response:
            answer = await response.read()
            assert response.status == 200, answer
            decoded: dict[str, list[int]] = json.loads(answer)
            return decoded


@asynccontextmanager
async def watched(process: Process, **more: float) -> AsyncGenerator[World, None]:
    with closing(ZmqFrames()) as frames:
        async with HttpClient() as http:
            world = World(process, http, frames, more)
            async with anyio.create_task_group() as tasks:
                await tasks.start(world.reader.run)
                await tasks.start(world.agent.run)
                await world.is_registered_as(WorkerState.READY)
                yield world
                tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "options", [(), ("--event-format", "array"), ("--hash-format", "bytes")], ids=str
)
async def test_the_cache_of_a_process_reaches_a_reader(options: tuple[str, ...]) -> None:
    with engine(*options) as process:
        async with watched(process) as world:
            names = await world.complete("Once upon a time there was a fox. " * 20)
            assert len(names) > 4
            await world.has_blocks(names)
            for number in range(6):  # more than the cache holds
                last = await world.complete(f"{number} is a number that I like. " * 20)
            await world.has_blocks(last)
            await world.reader.has_report(live_blocks=len(world.reader.names), total_blocks=BLOCKS)
            assert len(world.reader.names) <= BLOCKS
            card = ModelCard.model_validate_json(world.etcd.entries[KEYS.model("sim")].value)
            assert card.tokenizer_json is not None
            assert card.chat_template is not None


async def test_a_killed_engine_comes_back_empty() -> None:
    with engine() as process:
        async with watched(process) as world:
            before = await world.complete("What was before the end? " * 12)
            await world.has_blocks(before)
            process.kill()
            await world.is_registered_as(WorkerState.UNHEALTHY)
            process.start()
            await world.is_registered_as(WorkerState.READY)
            await world.reader.holds(set())
            after = await world.complete("And what comes after it? " * 12)
            await world.has_blocks(after)
            assert not world.reader.names & before


@pytest.mark.parametrize(
    ("acceptance", "draft_cost", "kept"), [(0.02, 0.2, False), (0.95, 0.02, True)]
)
async def test_drafts_of_a_process_are_tried(
    acceptance: float, draft_cost: float, kept: bool
) -> None:
    """SD13: kept or rolled back by what answers take with them and without. Dear drafts lengthen
    the step that a short prompt waits for, so the good ones are cheap."""
    config = {"acceptance": acceptance, "num_speculative_tokens": 3, "draft_cost": draft_cost}
    with engine("--speculative-config", json.dumps(config)) as process:
        async with (
            watched(process, draft_trial_s=1.0, draft_acceptance_min=0.0) as world,
            anyio.create_task_group() as tasks,
        ):

            async def talk() -> None:
                while True:
                    await world.complete("Say something. ", length=40)

            for _ in range(4):
                tasks.start_soon(talk)
            verdict = {"to": "on", "reason": "kept"} if kept else {"to": "off", "reason": "tpot"}
            with anyio.fail_after(60):
                while not world.counted("draft_switches_total", **verdict):
                    await world.complete("Still? ")
            tasks.cancel_scope.cancel()
            assert await world.speculates() is kept
            assert (world.metric("draft_trial_tpot_ratio") < 1) is kept


async def test_poor_drafts_of_a_process_are_switched_off() -> None:
    """SD8: the agent reads the counters, and the engine obeys."""
    config = json.dumps({"acceptance": 0.02, "num_speculative_tokens": 3})
    with engine("--speculative-config", config) as process:
        async with watched(process) as world, anyio.create_task_group() as tasks:
            assert await world.speculates()

            async def talk() -> None:
                while True:
                    await world.complete("Say something long. ", length=200)

            tasks.start_soon(talk)
            with anyio.fail_after(60):
                while await world.speculates():
                    await world.complete("Still? ")
            tasks.cancel_scope.cancel()
            assert world.metric("draft_switches_total", to="off", reason="acceptance") == 1
            assert world.metric("drafts_total", outcome="rejected") > 200
            assert world.metric("drafts_wanted") == 0
