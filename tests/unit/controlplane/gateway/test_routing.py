"""How a gateway asks routers that are busy, or dead."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from controlplane.gateway.openai import ClientError
from controlplane.gateway.routing import Hints
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, WorkerId
from proto.progress import Phase, Progress, Withdrawn
from proto.route import ALL_BUSY, NO_WORKER, Queued, Rejected, RouteLeg, RouteRequest
from proto.workers import Role, WorkerRecord
from tests.support.gateway_world import (
    DONE,
    KEYS,
    SETTINGS,
    SUBJECTS,
    Client,
    World,
    records,
    whole,
    world,
)
from tests.support.router_core import record

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]


async def test_who_is_queued_asks_again_with_what_is_left_of_its_patience(
    anyio_backend: str,
) -> None:
    async with world(settings=SETTINGS.model_copy(update={"queue_s": 3.0})) as ours:
        ours.engine("a", whole)
        ours.replies += [Queued(2), Queued(1)]
        client = Client()
        await ours.serve(client)
        assert client.read.endswith(DONE)
        first, second, third = ours.routed
        assert (first.waited_s, first.deadline_s) == (0.0, 3.0)
        assert 0 < second.waited_s < third.waited_s
        assert third.deadline_s == pytest.approx(3.0 - third.waited_s)
        assert {route.attempt for route in ours.routed} == {1}
        assert first.answer_s < SETTINGS.route_s / 2  # or it would be taken for dead


async def test_who_joins_or_changes_is_asked_about_from_then_on(anyio_backend: str) -> None:
    async def told(ours: World, worker: WorkerRecord) -> RouteRequest:
        """What is asked once the gateway knows of it."""
        seen = ours.view.changes
        await ours.store.put(KEYS.worker(worker.worker), worker.model_dump_json().encode())
        with anyio.fail_after(5):
            while ours.view.changes == seen:
                await anyio.lowlevel.checkpoint()
        await ours.serve(Client())
        return ours.routed[-1]

    async with world() as ours:
        ours.engine("a", whole)
        await ours.serve(Client())
        assert (set(ours.routed[-1].blocks), ours.routed[-1].leg) == ({16}, RouteLeg.WHOLE)
        joined = await told(ours, record("c", block_tokens=32))
        assert (set(joined.blocks), joined.leg) == ({16, 32}, RouteLeg.WHOLE)
        changed = await told(ours, record("c", role=Role.PREFILL))
        assert (set(changed.blocks), changed.leg) == ({16}, RouteLeg.DECODE)


async def test_routers_hear_of_an_end_before_they_are_asked_again(anyio_backend: str) -> None:
    reader, known = Reader[Progress](Progress), list[list[Phase]]()
    async with (
        world() as ours,
        ours.hub.connect("router").subscribe(SUBJECTS.every_progress) as heard,
    ):

        async def answer() -> AsyncGenerator[bytes]:
            told = iter(heard.take, None)
            known.append([reader.open(each.data).body.phase for each in told if each])
            async for piece in whole():
                yield piece

        ours.engine("a", answer)
        await ours.serve(Client())
        await ours.serve(Client())
    assert Phase.ENDED not in known[0]
    assert Phase.ENDED in known[1]


async def test_when_all_are_busy_for_too_long_the_client_is_told_when_to_come_again(
    anyio_backend: str,
) -> None:
    async with world() as ours:
        ours.replies += [Queued(1), Rejected(ALL_BUSY, "a is busy_prefill", 7.0)]
        client = Client()
        with pytest.raises(ClientError) as caught:
            await ours.serve(client)
        error = caught.value
        assert (error.status, error.code, error.retry_after_s) == (503, ALL_BUSY, 7.0)
        [written] = await records(ours, 1)
        assert (written.outcome, written.attempts) == (ALL_BUSY, 0)


async def test_a_router_that_dies_over_a_question_leaves_it_to_another(anyio_backend: str) -> None:
    async with world() as ours, withdrawals(ours) as first:
        ours.engine("a", whole)
        ours.replies += [None]
        client = Client()
        await ours.serve(client)
        assert client.headers["x-tokenplane-policy"] == "kv"
        assert len(ours.routed) == 2
        # It may have been slow and not dead: what it has booked is for nobody.
        assert await first() == Withdrawn(RequestId("q1"), 1, kept=WorkerId("a"))


async def test_a_client_that_leaves_while_it_is_queued_is_withdrawn(anyio_backend: str) -> None:
    async with world() as ours, withdrawals(ours) as first:
        ours.replies += [None]
        with anyio.move_on_after(0.1):
            await ours.serve(Client())
        assert await first() == Withdrawn(RequestId("q1"), 1)


async def test_a_request_that_waited_and_was_served_withdraws_nothing(anyio_backend: str) -> None:
    async with world() as ours, withdrawals(ours) as first:
        ours.engine("a", whole)
        ours.replies += [Queued(1)]
        await ours.serve(Client())
        later = Withdrawn(RequestId("later"), 1)
        sealed = Producer("gw", Incarnation(1), lambda: 0.0).seal(later)
        await ours.hub.connect("gateway").publish(SUBJECTS.withdrawn, sealed)
        assert await first() == later


async def test_when_no_router_answers_the_gateway_chooses_by_itself(anyio_backend: str) -> None:
    async with world() as ours:
        for name in ("a", "b"):
            ours.engine(name, whole)
        ours.replies += [None, None]
        client = Client()
        await ours.serve(client)
        assert client.headers["x-tokenplane-policy"] == "fallback"


@pytest.mark.parametrize("blind_s", [3_600.0, 0.0])
async def test_cp6_without_routers_and_registry_the_last_view_serves_for_a_bounded_time(
    anyio_backend: str, blind_s: float
) -> None:
    async with world(
        router=False, settings=SETTINGS.model_copy(update={"blind_s": blind_s})
    ) as ours:
        ours.engine("a", whole)
        ours.engine("b", whole)
        await ours.serve(Client())  # while the registry feeds the view, there is no bound
        ours.store.cut()
        await anyio.wait_all_tasks_blocked()
        client = Client()
        if blind_s:
            await ours.serve(client)
            assert client.headers["x-tokenplane-policy"] == "fallback"
            return
        with pytest.raises(ClientError) as caught:
            await ours.serve(client)
        assert (caught.value.status, caught.value.code) == (503, NO_WORKER)
        ours.store.mend()
        await anyio.wait_all_tasks_blocked()
        await ours.serve(client)
        assert client.read.endswith(DONE)


def of_kinds(a: str, b: str) -> Sequence[WorkerRecord]:
    return record("a", engine=a), record("b", engine=b)


@pytest.mark.parametrize("workload", ["structured", "portable"])
async def test_what_the_gateway_chooses_by_itself_follows_the_rules_of_engines(
    anyio_backend: str, workload: str
) -> None:
    """EN6, as a router would have it, although `b` is the busier one."""
    async with world(fleet=of_kinds("trtllm", "sglang")) as ours:
        ours.engine("b", whole)
        ours.replies += [None, None]
        ours.gateway.routing.opened(WorkerId("b"))
        client = Client()
        await ours.serve(client, Hints(workload=(workload,)))
        assert client.headers["x-tokenplane-policy"] == "fallback"
        assert client.headers["x-tokenplane-worker"] == "b"


async def test_who_may_not_serve_does_not_serve_when_no_router_answers(anyio_backend: str) -> None:
    async with world(fleet=of_kinds("trtllm", "trtllm")) as ours:
        ours.replies += [None, None]
        with pytest.raises(ClientError) as caught:
            await ours.serve(Client(), Hints(workload=("portable",)))
        assert (caught.value.status, caught.value.code) == (503, NO_WORKER)


@asynccontextmanager
async def withdrawals(ours: World) -> AsyncIterator[Callable[[], Awaitable[Withdrawn]]]:
    """Waits for the first thing that the gateway withdraws, as routers hear it."""
    reader = Reader[Withdrawn](Withdrawn)
    async with ours.hub.connect("router").subscribe(SUBJECTS.withdrawn) as messages:

        async def first() -> Withdrawn:
            with anyio.fail_after(5):
                return reader.open((await anext(aiter(messages))).data).body

        yield first
