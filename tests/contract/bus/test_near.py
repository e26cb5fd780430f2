"""What a process that asks itself has of it. That it keeps the contract, too, the others show."""

from __future__ import annotations

import json

import pytest

from proto.wire.errors import BusUnavailable, NoResponder
from proto.wire.nats import NearBus
from proto.wire.ports import Endpoint, Message
from tests.contract.bus.carriers import (
    DEADLINE_S,
    ECHO,
    NEAR,
    Connect,
    echo,
    nothing_comes,
    quick_settings,
    take,
    until,
)
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("carrier", NEAR, ids=str, indirect=True)]


def answering(who: bytes, **changes: object) -> Endpoint:
    async def handle(message: Message) -> bytes:
        return who

    return echo(handle, **changes)


async def test_what_it_serves_itself_it_asks_itself(connect: Connect) -> None:
    async with (
        connect("one") as one,
        connect("two") as two,
        one.serve(ECHO, [answering(b"one")]),
        two.serve(ECHO, [answering(b"two")]),
    ):
        for bus, own in ((one, b"one"), (two, b"two")):
            answers = [await bus.request("echo", b"", timeout_s=DEADLINE_S) for _ in range(40)]
            assert {answer.data for answer in answers} == {own}


async def test_once_it_serves_no_more_it_asks_the_others(connect: Connect) -> None:
    async with connect("one") as one, connect("two") as two:
        async with two.serve(ECHO, [answering(b"two")]):
            async with one.serve(ECHO, [answering(b"one")]):
                pass
            answer = await one.request("echo", b"", timeout_s=DEADLINE_S)
        assert answer.data == b"two"
        with pytest.raises(NoResponder):
            await one.request("echo", b"", timeout_s=DEADLINE_S)


async def test_what_it_says_it_hears_once_and_before_it_is_answered(connect: Connect) -> None:
    heard: list[int] = []
    async with connect("a") as bus, connect("b") as other, other.subscribe("told.*") as there:
        async with bus.subscribe("told.*") as here:

            async def handle(message: Message) -> bytes:
                heard.append(here.waiting)
                return b""

            async with bus.serve(ECHO, [echo(handle)]):
                await bus.publish("told.a", b"1")
                await bus.publish("told.b", b"2")
                await bus.request("echo", b"", timeout_s=DEADLINE_S)
            assert heard == [2]
            for messages in (here, there):  # two clients keep no order between them
                assert [message.data for message in await take(messages, 2)] == [b"1", b"2"]
            await other.publish("told.c", b"3")
            assert [message.data for message in await take(here, 1)] == [b"3"]
            assert await nothing_comes(here)
        assert [message.data for message in await take(there, 1)] == [b"3"]


async def test_each_of_those_without_a_group_gets_what_one_of_them_asks(connect: Connect) -> None:
    heard: list[bytes] = []

    def everybody(who: bytes) -> Endpoint:
        async def handle(message: Message) -> bytes:
            heard.append(who)
            return who

        return echo(handle, group=None)

    async with (
        connect("one") as one,
        connect("two") as two,
        one.serve(ECHO, [everybody(b"one")]),
        two.serve(ECHO, [everybody(b"two")]),
    ):
        answer = await one.request("echo", b"", timeout_s=DEADLINE_S)
        await until(lambda: len(heard) == 2)
        assert answer.data == b"one"
        assert sorted(heard) == [b"one", b"two"]


async def test_what_it_asks_itself_shows_in_its_services_figures(connect: Connect) -> None:
    async with connect("a") as bus, connect("b") as other, bus.serve(ECHO, [echo()]):
        for _ in range(3):
            await bus.request("echo", b"", timeout_s=DEADLINE_S)
        told = await other.request(f"$SRV.STATS.{ECHO.name}", b"", timeout_s=DEADLINE_S)
    assert json.loads(told.data)["endpoints"][0]["num_requests"] == 3


async def test_it_asks_and_hears_itself_while_the_server_is_away(server: NatsServer) -> None:
    async with (
        NearBus(quick_settings(server)) as bus,
        bus.serve(ECHO, [echo()]),
        bus.subscribe("s") as heard,
    ):
        server.kill()
        await until(lambda: not bus.connected)
        answer = await bus.request("echo", b"alone", timeout_s=DEADLINE_S)
        await bus.publish("s", b"to myself")
        assert answer.data == b"alone"
        assert [message.data for message in await take(heard, 1)] == [b"to myself"]
        with pytest.raises(BusUnavailable):
            await bus.request("elsewhere", b"", timeout_s=0.1)
        server.start()
