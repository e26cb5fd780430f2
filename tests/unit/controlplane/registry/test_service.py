"""The registry's answers, over a bus in memory; its numbers; its drain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from controlplane.registry.service import RegistryService
from proto.subjects import Subjects
from proto.wire.errors import NoResponder, RequestRefused
from proto.wire.memory.bus import MemoryBus, MemoryHub
from proto.workers import WorkersReply, WorkersRequest, WorkerState
from tests.unit.controlplane.registry.fleet import Fleet, running
from tests.unit.controlplane.registry.records import card, worker

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

SUBJECTS = Subjects("test")
W1, W2 = worker("w1"), worker("w2", model="other", state=WorkerState.DRAINING)


@dataclass
class Registry:
    """A registry that answers, and somebody to ask it."""

    fleet: Fleet
    service: RegistryService
    metrics: CollectorRegistry
    client: MemoryBus

    async def ask(self, request: bytes) -> WorkersReply:
        reply = await self.client.request(SUBJECTS.registry_workers, request, timeout_s=5)
        return WorkersReply.model_validate_json(reply.data)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.get_sample_value(f"tokenplane_registry_{name}", labels)


@asynccontextmanager
async def registry(fleet: Fleet) -> AsyncIterator[Registry]:
    metrics = CollectorRegistry()
    async with MemoryHub() as hub, running(fleet) as view:
        service = RegistryService(hub.connect("registry"), SUBJECTS, view, metrics)
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: service.run(task_status=task_status))
            yield Registry(fleet, service, metrics, hub.connect("client"))
            tasks.cancel_scope.cancel()


async def test_it_tells_who_is_there() -> None:
    fleet = Fleet()
    await fleet.put(W2, W1)
    async with registry(fleet) as asked:
        everybody = WorkersReply(workers=(W1, W2))
        assert await asked.ask(b"") == everybody
        assert await asked.ask(WorkersRequest().model_dump_json().encode()) == everybody
        of_one_model = WorkersRequest(model="other").model_dump_json().encode()
        assert await asked.ask(of_one_model) == WorkersReply(workers=(W2,))


async def test_while_the_store_is_away_the_answer_says_so() -> None:
    fleet = Fleet()
    await fleet.put(W1)
    async with registry(fleet) as asked:
        fleet.link.cut()
        await anyio.wait_all_tasks_blocked()
        assert await asked.ask(b"") == WorkersReply(workers=(W1,), stale=True)
        assert asked.sample("stale") == 1


async def test_a_bad_question_is_refused_and_counted() -> None:
    async with registry(Fleet()) as asked:
        with pytest.raises(RequestRefused, match="model") as caught:
            await asked.ask(b'{"model": 7}')
        assert caught.value.code == 400
        assert asked.sample("requests_total", outcome="refused") == 1
        await asked.ask(b"{}")
        assert asked.sample("requests_total", outcome="answered") == 1


async def test_after_a_drain_nobody_answers() -> None:
    async with registry(Fleet()) as asked:
        await asked.service.drain()
        with pytest.raises(NoResponder):
            await asked.ask(b"")


async def test_the_numbers_follow_the_fleet() -> None:
    fleet = Fleet()
    await fleet.put(W1, W2, card())
    key = await fleet.garble(worker("w3"))
    async with registry(fleet) as asked:
        ready = {"model": "sim", "role": "aggregated", "state": "ready"}
        assert asked.sample("workers", **ready) == 1
        assert asked.sample("workers", **ready | {"model": "other", "state": "draining"}) == 1
        assert asked.sample("models") == 1
        assert asked.sample("bad_records") == 1
        assert asked.sample("stale") == 0
        await fleet.delete(W1)
        await fleet.agents.delete(key)
        await anyio.wait_all_tasks_blocked()
        assert asked.sample("workers", **ready) is None
        assert asked.sample("bad_records") == 0
        assert b"tokenplane_registry_workers" in generate_latest(asked.metrics)
