"""Both legs of a request at once, as SGLang wants them, and what comes of it when one fails."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import pytest

from controlplane.gateway.flight import ClientStalled
from proto.codec import Producer, Reader
from proto.ids import Incarnation, RequestId, ServiceId, WorkerId
from proto.route import Chosen, RouteLeg, RouteRequest
from proto.transfers import End, Granted, State, Stepped, Ticket, TicketId
from proto.wire.errors import HttpBroken
from proto.wire.memory.http import Answer
from proto.wire.ports import Endpoint, Message, ServiceInfo
from proto.workers import HandoffOrder
from tests.support.gateway_world import DONE, PIECES, SUBJECTS, Client, World, records, whole, world
from tests.support.router_core import record

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

DECODE, PREFILL = WorkerId("d"), WorkerId("p")
CONNECTOR = {"connector": "x", "order": "overlapped"}
FLEET = (
    record(DECODE, role="decode", transfer=CONNECTOR),
    record(PREFILL, role="prefill", transfer={**CONNECTOR, "bootstrap": "h:99"}),
)
TICKET = Ticket(
    TicketId("ab"),
    RequestId("q1"),
    "m",
    ServiceId("gw"),
    HandoffOrder.OVERLAPPED,
    End(PREFILL, 1, "http://p", "sim"),
    End(DECODE, 1, "http://d", "sim"),
    state=State.TRANSFERRING,
    deadline_s=1_030.0,
    changed_s=1_000.0,
)
Body = Callable[[], AsyncGenerator[bytes]]


async def prefilled() -> AsyncGenerator[bytes]:
    yield b"{}"


@asynccontextmanager
async def split_world(prefill: Body, decode: Body) -> AsyncIterator[World]:
    """A decode worker and one that prefills for it, whatever is asked."""
    producer = Producer(ServiceId("r"), Incarnation(1), lambda: 0.0)

    async def route(message: Message) -> bytes:
        asked = Reader[RouteRequest](RouteRequest).open(message.data).body
        name = PREFILL if asked.leg is RouteLeg.PREFILL else DECODE
        return producer.seal(Chosen(name, 1, f"http://{name}", ServiceId("r"), "kv", 0, 16))

    async def begin(message: Message) -> bytes:
        del message
        return producer.seal(Granted(TICKET))

    async def report(message: Message) -> bytes:
        del message
        return producer.seal(Stepped(TICKET))

    endpoints = [
        Endpoint("route", SUBJECTS.route, route),
        Endpoint("begin", SUBJECTS.transfer("begin"), begin),
        Endpoint("report", SUBJECTS.transfer("report"), report),
    ]
    async with (
        world(fleet=FLEET, router=False) as ours,
        ours.hub.connect("r").serve(ServiceInfo("router", "1.0.0"), endpoints),
    ):
        ours.http.origins["http://p"] = lambda _: Answer(200, prefill())
        ours.http.origins["http://d"] = lambda _: Answer(200, decode())
        yield ours


async def test_a_client_that_stalls_is_recorded_as_one(anyio_backend: str) -> None:
    class Stalls(Client):
        def put(self, data: bytes) -> bool:
            super().put(data)
            return False

        async def writable(self) -> None:
            raise ClientStalled("did not read")

    async with split_world(prefilled, whole) as ours:
        with pytest.raises(ClientStalled):
            await ours.serve(Stalls())
        [written] = await records(ours, 1)
        assert written.outcome == "client_stalled"


async def test_a_first_token_is_not_said_again_though_its_prefill_has_just_failed(
    anyio_backend: str,
) -> None:
    """Both come in the same moment: the decode leg is cancelled, and does not know yet."""
    died, came, begun = anyio.Event(), anyio.Event(), 0

    async def breaks() -> AsyncGenerator[bytes]:
        nonlocal begun
        begun += 1
        if begun > 1:
            yield b"{}"
            return
        await died.wait()
        raise HttpBroken("died")

    async def decoded() -> AsyncGenerator[bytes]:
        await came.wait()
        yield PIECES[0]
        await anyio.lowlevel.checkpoint()
        yield b"".join(PIECES[1:]) + DONE

    async with split_world(breaks, decoded) as ours, anyio.create_task_group() as tasks:
        client = Client()
        tasks.start_soon(ours.serve, client)
        await anyio.wait_all_tasks_blocked()
        died.set()
        came.set()
    assert client.read.count(PIECES[0]) == 1
    if DONE not in client.read:
        last = client.read.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_lost"
