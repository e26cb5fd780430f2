"""Request, reply and services, as every carrier of the bus promises it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio
import pytest
from anyio.abc import TaskStatus

from proto.wire.errors import BusTimeout, NoResponder, RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo
from tests.contract.bus.carriers import DEADLINE_S, ECHO, Connect, echo, nobody_serves, take, until

pytestmark = pytest.mark.anyio

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


class Gate:
    """A handler that waits until it is let go, and counts who is inside."""

    def __init__(self) -> None:
        self.inside = self.inside_most = 0
        self._open = anyio.Event()

    async def __call__(self, message: Message) -> bytes:
        self.inside += 1
        self.inside_most = max(self.inside_most, self.inside)
        try:
            await self._open.wait()
        finally:
            self.inside -= 1
        return message.data

    def open(self) -> None:
        self._open.set()


async def ask(bus: Bus, data: bytes, answers: list[bytes | int]) -> None:
    """A request whose answer, or the code of its refusal, is appended."""
    try:
        answers.append((await bus.request("echo", data, timeout_s=DEADLINE_S)).data)
    except RequestRefused as refusal:
        answers.append(refusal.code)


async def test_a_request_is_answered_with_headers_both_ways(connect: Connect) -> None:
    heard: list[Message] = []

    async def handle(message: Message) -> bytes:
        heard.append(message)
        return message.data[::-1]

    async with (
        connect("server") as server,
        connect("client") as client,
        server.serve(ECHO, [echo(handle)]),
    ):
        answer = await client.request("echo", b"abc", timeout_s=DEADLINE_S, headers=TRACE)
        plain = await client.request("echo", b"", timeout_s=DEADLINE_S)
    assert answer.data == b"cba"
    assert plain.data == b""
    assert [(each.subject, dict(each.headers)) for each in heard] == [("echo", TRACE), ("echo", {})]


async def test_nobody_there_is_told_at_once(connect: Connect) -> None:
    async with connect("client") as client:
        with anyio.fail_after(DEADLINE_S), pytest.raises(NoResponder, match="echo"):
            await client.request("echo", b"", timeout_s=3600)


async def test_silence_is_a_timeout(connect: Connect) -> None:
    async with connect("client") as client, connect("silent") as silent, silent.subscribe("echo"):
        with pytest.raises(BusTimeout, match="echo"):
            await client.request("echo", b"", timeout_s=0.05)


async def test_a_refusal_reaches_the_caller_with_its_code(connect: Connect) -> None:
    async def handle(message: Message) -> bytes:
        raise RequestRefused(404, f"no model {message.data.decode()} – ask the registry")

    async with connect("a") as bus, bus.serve(ECHO, [echo(handle)]):
        with pytest.raises(RequestRefused) as refused:
            await bus.request("echo", b"m", timeout_s=DEADLINE_S)
    assert refused.value.code == 404
    assert refused.value.description == "no model m – ask the registry"


async def test_a_handler_that_fails_answers_500_and_the_service_lives(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(message: Message) -> bytes:
        if message.data == b"bad":
            raise ZeroDivisionError("secret detail")
        return b"fine"

    async with connect("a") as bus, bus.serve(ECHO, [echo(handle)]):
        with pytest.raises(RequestRefused) as refused:
            await bus.request("echo", b"bad", timeout_s=DEADLINE_S)
        assert refused.value.code == 500
        assert "secret" not in refused.value.description
        assert (await bus.request("echo", b"good", timeout_s=DEADLINE_S)).data == b"fine"
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info is not None


async def test_handlers_run_side_by_side_up_to_the_bound_and_no_further(connect: Connect) -> None:
    gate = Gate()
    answers: list[bytes | int] = []
    async with (
        connect("a") as bus,
        bus.serve(ECHO, [echo(gate, concurrency=3)]),
        anyio.create_task_group() as callers,
    ):
        for n in range(10):
            callers.start_soon(ask, bus, bytes([n]), answers)
        await until(lambda: gate.inside == 3)
        gate.open()
    assert gate.inside_most == 3
    assert sorted(map(str, answers)) == sorted(str(bytes([n])) for n in range(10))


async def test_what_comes_on_top_of_the_queue_is_refused_with_503(connect: Connect) -> None:
    gate = Gate()
    answers: list[bytes | int] = []
    endpoint = echo(gate, concurrency=1, queue_messages=2)
    async with (
        connect("a") as bus,
        bus.serve(ECHO, [endpoint]),
        anyio.create_task_group() as callers,
    ):
        for n in range(5):
            callers.start_soon(ask, bus, bytes([n]), answers)
        await until(lambda: len(answers) == 2)
        assert answers == [503, 503]
        gate.open()
    assert len(answers) == 5
    assert answers.count(503) == 2


async def test_replicas_of_a_group_share_and_without_a_group_each_gets_every_request(
    connect: Connect,
) -> None:
    served: list[str] = []

    def replica(who: str) -> Sequence[Endpoint]:
        async def shared(message: Message) -> bytes:
            served.append(who)
            return message.data

        async def each(message: Message) -> bytes:
            served.append(f"{who} too")
            return message.data

        return [echo(shared), Endpoint("all", "all", each, group=None)]

    async with (
        connect("one") as one,
        connect("two") as two,
        connect("client") as client,
        one.serve(ECHO, replica("one")),
        two.serve(ECHO, replica("two")),
    ):
        for _ in range(40):
            await client.request("echo", b"", timeout_s=DEADLINE_S)
        assert len(served) == 40
        assert set(served) == {"one", "two"}
        await client.request("all", b"", timeout_s=DEADLINE_S)
        await until(lambda: {"one too", "two too"} <= set(served))


async def test_a_plain_message_to_an_endpoint_is_handled_too(connect: Connect) -> None:
    heard = anyio.Event()

    async def handle(message: Message) -> bytes:
        heard.set()
        return message.data

    async with connect("a") as bus, bus.serve(ECHO, [echo(handle)]):
        await bus.publish("echo", b"")
        with anyio.fail_after(DEADLINE_S):
            await heard.wait()


async def test_leaving_finishes_what_is_under_way_and_takes_no_more(connect: Connect) -> None:
    gate = Gate()
    answers: list[bytes | int] = []
    leaving, left = anyio.Event(), anyio.Event()

    async def serve(bus: Bus, *, task_status: TaskStatus[None]) -> None:
        async with bus.serve(ECHO, [echo(gate, concurrency=2)]):
            task_status.started()
            await leaving.wait()
        left.set()

    async with connect("server") as server, connect("client") as client, connect("o") as observer:
        async with anyio.create_task_group() as tasks:
            await tasks.start(serve, server)
            async with observer.subscribe("echo") as routed:
                for n in range(3):  # two go inside and one waits behind them
                    tasks.start_soon(ask, client, bytes([n]), answers)
                await take(routed, 3)
            leaving.set()
            await nobody_serves(client, "echo")
            assert not left.is_set()
            assert answers == []
            gate.open()
        assert left.is_set()
    assert sorted(map(str, answers)) == sorted(str(bytes([n])) for n in range(3))


async def test_leaving_by_an_error_ends_what_is_under_way_and_raises_it(connect: Connect) -> None:
    gate = Gate()
    async with connect("a") as bus, anyio.create_task_group() as callers:
        with anyio.fail_after(DEADLINE_S), pytest.raises(KeyError, match="mine"):
            async with bus.serve(ECHO, [echo(gate)]):
                callers.start_soon(ask, bus, b"", [])
                await until(lambda: gate.inside == 1)
                raise KeyError("mine")
        assert gate.inside == 0
        callers.cancel_scope.cancel()


@pytest.mark.parametrize(
    "service",
    [ServiceInfo("a name", "1.0.0"), ServiceInfo("name", "one"), ServiceInfo("", "1.0.0")],
)
async def test_a_service_without_a_proper_name_or_version_is_misuse(
    connect: Connect, service: ServiceInfo
) -> None:
    async with connect("a") as bus:
        with pytest.raises(ValueError, match=r"name|version"):
            async with bus.serve(service, [echo()]):
                pass
