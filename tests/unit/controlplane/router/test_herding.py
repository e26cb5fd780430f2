"""Requests that come at the same moment: spread where they have nothing in common, kept together
where they share a prefix, for as long as that pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from controlplane.router.service import RouterService
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, WorkerId
from proto.kv import KvBatch
from proto.route import Chosen, RouteReply, RouteRequest
from proto.subjects import Keys, Subjects
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Bus
from tests.support.router_core import BLOCK, record
from tests.unit.controlplane.router.test_replicas import start
from tests.unit.controlplane.router.test_service import pack_names

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

SUBJECTS, KEYS = Subjects("c"), Keys("c")
WORKERS = [WorkerId(f"w{i}") for i in range(8)]
CALLERS = 32
PREFIX_BLOCKS, TAIL_BLOCKS = 128, 4
HOLDER = WORKERS[3]
PREFIX = pack_names([(1 << 32) + i for i in range(PREFIX_BLOCKS)])


@asynccontextmanager
async def fleet(routers: int = 1) -> AsyncIterator[tuple[list[RouterService], Bus]]:
    etcd = MemoryEtcd()
    store = etcd.connect()
    for worker in WORKERS:
        idle = record(worker, total_blocks=100_000)
        await store.put(KEYS.worker(worker), idle.model_dump_json().encode())
    async with MemoryHub() as hub, anyio.create_task_group() as tasks:
        started = [await start(tasks, f"r{i}", hub.connect(f"r{i}"), etcd) for i in range(routers)]
        yield started, hub.connect("gateway")
        tasks.cancel_scope.cancel()


def prompt(number: int, prefix: int) -> RouteRequest:
    """`PREFIX_BLOCKS` that are the same wherever `prefix` is, and a tail of its own."""
    names = [(prefix << 32) + i for i in range(PREFIX_BLOCKS)]
    names += [(1 << 60) + (number << 32) + i for i in range(TAIL_BLOCKS)]
    packed = pack_names(names)
    return RouteRequest(RequestId(f"{number}"), "m", len(names) * BLOCK, {BLOCK: packed})


async def at_once(bus: Bus, requests: list[RouteRequest]) -> Counter[WorkerId]:
    """Ask all of it in the same moment; how many each worker got."""
    producer, reader = Producer("gw", Incarnation(1), lambda: 0.0), Reader[RouteReply](RouteReply)
    chosen: Counter[WorkerId] = Counter()

    async def ask(request: RouteRequest) -> None:
        answer = await bus.request(SUBJECTS.route, producer.seal(request), timeout_s=10)
        reply = reader.open(answer.data).body
        assert isinstance(reply, Chosen)
        chosen[reply.worker] += 1

    async with anyio.create_task_group() as tasks:
        for request in requests:
            tasks.start_soon(ask, request)
    return chosen


async def test_prompts_with_nothing_in_common_are_spread(anyio_backend: str) -> None:
    async with fleet() as (_, bus):
        chosen = await at_once(bus, [prompt(i, prefix=i + 1) for i in range(CALLERS)])
        assert chosen == dict.fromkeys(WORKERS, CALLERS // len(WORKERS))


async def test_replicas_that_decide_at_once_do_not_herd(anyio_backend: str) -> None:
    async with fleet(routers=3) as (_, bus):
        chosen = await at_once(bus, [prompt(i, prefix=i + 1) for i in range(CALLERS)])
        assert chosen.keys() == set(WORKERS)
        assert max(chosen.values()) <= 2 * CALLERS // len(WORKERS)


async def test_a_few_siblings_all_go_to_who_holds_their_prefix(anyio_backend: str) -> None:
    async with fleet() as ([router], bus):
        router.core.apply(KvBatch(HOLDER, PREFIX))
        chosen = await at_once(bus, [prompt(i, prefix=1) for i in range(4)])
        assert chosen == {HOLDER: 4}


async def test_many_siblings_use_other_workers_too_once_the_holder_is_crowded(
    anyio_backend: str,
) -> None:
    async with fleet() as ([router], bus):
        router.core.apply(KvBatch(HOLDER, PREFIX))
        chosen = await at_once(bus, [prompt(i, prefix=1) for i in range(CALLERS)])
        assert chosen.keys() == set(WORKERS)
        assert chosen.most_common(1)[0][0] == HOLDER
        assert chosen[HOLDER] > 1.5 * CALLERS / len(WORKERS)


async def test_siblings_of_a_prefix_that_nobody_holds_compute_it_once_a_worker(
    anyio_backend: str,
) -> None:
    async with fleet() as ([router], bus):
        chosen = await at_once(bus, [prompt(i, prefix=1) for i in range(CALLERS)])
        every = router.core.ledger.bookings((WorkerId(""), RequestId("")))
        prefill_blocks = sum(booking.new_prefill_tokens for booking in every) // BLOCK
        assert prefill_blocks == len(chosen) * PREFIX_BLOCKS + CALLERS * TAIL_BLOCKS
