"""More requests than a fleet can take, over the bus: they wait, and stand in nobody's way."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from controlplane.router.service import LEAVING_AT_ONCE, RouterService
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, WorkerId
from proto.progress import Phase, Progress, Withdrawn
from proto.route import Chosen, Queued, RouteReply
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Bus
from tests.support.router_core import PROMPT, question, record
from tests.unit.controlplane.router.test_replicas import start
from tests.unit.controlplane.router.test_service import until

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

SUBJECTS, KEYS = Subjects("c"), Keys("c")
BUSY, IDLE = WorkerId("busy"), WorkerId("idle")
WAITING = 3 * LEAVING_AT_ONCE


class Gateway:
    """Asks, and remembers what it is told."""

    def __init__(self, bus: Bus) -> None:
        self.replies: dict[str, RouteReply] = {}
        self._bus = bus
        self._producer = Producer("gw", Incarnation(1), lambda: 0.0)
        self._reader = Reader[RouteReply](RouteReply)

    async def ask(self, name: str, **other: object) -> RouteReply:
        asked = question(name, **{"blocks": {}, "deadline_s": 60.0, "answer_s": 30.0, **other})
        sealed = self._producer.seal(asked)
        answer = await self._bus.request(SUBJECTS.route, sealed, timeout_s=30)
        self.replies[name] = self._reader.open(answer.data).body
        return self.replies[name]

    async def say(self, name: str, phase: Phase) -> None:
        progress = Progress(RequestId(name), BUSY, 1, phase)
        await self._bus.publish(SUBJECTS.progress(BUSY), self._producer.seal(progress))

    async def withdraw(self, name: str) -> None:
        withdrawn = Withdrawn(RequestId(name), 1)
        await self._bus.publish(SUBJECTS.withdrawn, self._producer.seal(withdrawn))

    @property
    def told(self) -> Counter[type[RouteReply]]:
        return Counter(type(reply) for reply in self.replies.values())


@asynccontextmanager
async def overloaded(
    etcd: MemoryEtcd | None = None,
) -> AsyncIterator[tuple[RouterService, Gateway]]:
    """Two prompts make the one worker of the model busy, and many more wait for it."""
    etcd = etcd or MemoryEtcd()
    store = etcd.connect()
    busy, idle = record(BUSY, max_batched_tokens=len(PROMPT)), record(IDLE, model="other")
    for each in (busy, idle):
        await store.put(KEYS.worker(each.worker), each.model_dump_json().encode())
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        router = await start(tasks, "r", hub.connect("r"), etcd, busy_prefill_batches=1.0)
        gateway = Gateway(hub.connect("gateway"))
        for number in range(2):
            assert isinstance(await gateway.ask(f"running-{number}"), Chosen)
        gateway.replies.clear()
        for number in range(WAITING):
            tasks.start_soon(gateway.ask, f"waiting-{number}")
        await until(lambda: router.waiting == WAITING, "not all of them wait")
        yield router, gateway
        tasks.cancel_scope.cancel()


async def test_those_that_wait_do_not_keep_others_from_a_decision(anyio_backend: str) -> None:
    async with overloaded() as (_, gateway):
        reply = await gateway.ask("fresh", model="other")
        assert isinstance(reply, Chosen)
        assert gateway.told == {Chosen: 1}


async def test_a_worker_that_a_gateway_says_is_free_is_given_away_once(anyio_backend: str) -> None:
    async with overloaded() as (router, gateway):
        await gateway.say("running-0", Phase.FIRST_TOKEN)
        await until(lambda: bool(gateway.replies), "nobody was served")
        assert gateway.told == {Chosen: 1}
        assert router.waiting == WAITING - 1


async def test_a_worker_that_joins_serves_those_that_wait(anyio_backend: str) -> None:
    etcd = MemoryEtcd()
    async with overloaded(etcd) as (_, gateway):
        another = record("another", max_batched_tokens=100 * len(PROMPT))
        value = another.model_dump_json().encode()
        await etcd.connect().put(KEYS.worker(another.worker), value)
        await until(lambda: gateway.told == {Chosen: WAITING}, "not all were served")


async def test_a_booking_that_nobody_wants_frees_its_worker(anyio_backend: str) -> None:
    async with overloaded() as (_, gateway):
        await gateway.withdraw("running-0")
        await until(lambda: gateway.told == {Chosen: 1}, "nobody was served")


async def test_a_router_that_drains_answers_those_that_wait(anyio_backend: str) -> None:
    async with overloaded() as (router, gateway):
        with anyio.fail_after(5):
            await router.drain()
        await until(lambda: gateway.told == {Queued: WAITING}, "not all were answered")
