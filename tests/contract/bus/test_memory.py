"""What only the bus in memory can do: lose, delay and double messages, by a plan."""

from __future__ import annotations

import anyio
import pytest

from proto.wire.errors import BusTimeout, BusUnavailable, NoResponder
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Delay, Deliver, Drop, Duplicate, Fault
from proto.wire.ports import StreamSpec
from tests.contract.bus.carriers import (
    ACK_WAIT_S,
    DEADLINE_S,
    ECHO,
    echo,
    memory_only,
    nothing_comes,
    take,
)

pytestmark = [pytest.mark.anyio, memory_only]

SPEC = StreamSpec("S", ("stored",), max_age_s=60.0, max_bytes=1 << 20)
Outcome = Deliver | Drop | Delay | Duplicate


def plan(**of_receiver: list[Outcome]) -> Fault:
    """What happens to the first, the second, ... message for each receiver."""

    def fault(sender: str, subject: str, receiver: str) -> Outcome:
        outcomes = of_receiver.get(receiver, [])
        return outcomes.pop(0) if outcomes else Deliver()

    return fault


async def test_messages_are_lost_doubled_and_overtaken_as_the_plan_says() -> None:
    outcomes: list[Outcome] = [Drop(), Delay(0.01), Duplicate(), Deliver()]
    async with MemoryHub(plan(b=outcomes)) as hub:
        a, b, c = hub.connect("a"), hub.connect("b"), hub.connect("c")
        async with b.subscribe("s") as faulty, c.subscribe("s") as faithful:
            for n in range(4):
                await a.publish("s", b"%d" % n)
            assert [each.data for each in await take(faithful, 4)] == [b"0", b"1", b"2", b"3"]
            assert [each.data for each in await take(faulty, 4)] == [b"2", b"2", b"3", b"1"]
            assert await nothing_comes(faulty)


@pytest.mark.parametrize("lost", ["server", "client"])
async def test_a_request_or_its_answer_that_is_lost_is_a_timeout(lost: str) -> None:
    outcomes: dict[str, list[Outcome]] = {lost: [Drop()]}
    hub = MemoryHub(plan(**outcomes))
    server, client = hub.connect("server"), hub.connect("client")
    async with server.serve(ECHO, [echo()]):
        with pytest.raises(BusTimeout):
            await client.request("echo", b"", timeout_s=0.02)
        assert (await client.request("echo", b"again", timeout_s=DEADLINE_S)).data == b"again"


async def test_of_a_doubled_request_the_first_answer_counts() -> None:
    hub = MemoryHub(plan(server=[Duplicate()]))
    server, client = hub.connect("server"), hub.connect("client")
    async with server.serve(ECHO, [echo()]):
        assert (await client.request("echo", b"1", timeout_s=DEADLINE_S)).data == b"1"
        assert (await client.request("echo", b"2", timeout_s=DEADLINE_S)).data == b"2"


async def test_a_client_that_is_cut_off_hears_nothing_and_what_it_says_waits() -> None:
    hub = MemoryHub()
    a, b = hub.connect("a", outgoing_messages=2), hub.connect("b")
    async with a.subscribe("to.a") as heard_by_a, b.subscribe("to.b") as heard_by_b:
        a.cut()
        assert not a.connected
        await b.publish("to.a", b"unheard")
        await a.publish("to.b", b"1")
        await a.publish("to.b", b"2")
        with pytest.raises(BusUnavailable, match="cut off"):
            await a.publish("to.b", b"3")
        assert await nothing_comes(heard_by_b)
        a.mend()
        assert a.connected
        assert [each.data for each in await take(heard_by_b, 2)] == [b"1", b"2"]
        await b.publish("to.a", b"heard")
        assert [each.data for each in await take(heard_by_a, 1)] == [b"heard"]


async def test_a_service_that_is_cut_off_is_not_there_and_comes_back() -> None:
    hub = MemoryHub()
    server, client = hub.connect("server"), hub.connect("client")
    async with server.serve(ECHO, [echo()]):
        server.cut()
        with pytest.raises(NoResponder):
            await client.request("echo", b"", timeout_s=DEADLINE_S)
        server.mend()
        assert (await client.request("echo", b"", timeout_s=DEADLINE_S)).data == b""


async def test_a_caller_that_is_cut_off_is_told_whether_it_was_heard() -> None:
    hub = MemoryHub()
    server, client = hub.connect("server"), hub.connect("client")

    async def cut_the_caller(message: object) -> bytes:
        client.cut()
        return b"unheard"

    async with server.serve(ECHO, [echo(cut_the_caller)]):
        with pytest.raises(BusTimeout):
            await client.request("echo", b"", timeout_s=0.02)
        with pytest.raises(BusUnavailable):
            await client.request("echo", b"", timeout_s=0.02)


async def test_a_delivery_that_is_lost_comes_again() -> None:
    hub = MemoryHub(plan(reader=[Drop()]), ack_wait_s=ACK_WAIT_S)
    writer, reader = hub.connect("writer"), hub.connect("reader")
    await writer.ensure_stream(SPEC)
    await writer.append("stored", b"1", timeout_s=DEADLINE_S)
    async with reader.consume("S") as deliveries:
        assert [each.sequence for each in await take(deliveries, 1)] == [1]


async def test_a_reader_that_is_cut_off_goes_on_where_it_was() -> None:
    hub = MemoryHub()
    writer, reader = hub.connect("writer"), hub.connect("reader")
    await writer.ensure_stream(SPEC)
    async with reader.consume("S") as deliveries:
        reader.cut()
        await writer.append("stored", b"1", timeout_s=DEADLINE_S)
        assert await nothing_comes(deliveries)
        reader.mend()
        (delivery,) = await take(deliveries, 1)
        reader.cut()
        await delivery.ack()
        reader.mend()
    async with reader.consume("S", durable="d") as deliveries:
        assert len(await take(deliveries, 1)) == 1


async def test_messages_too_old_are_dropped() -> None:
    bus = MemoryHub().connect("a")
    await bus.ensure_stream(StreamSpec("S", ("stored",), max_age_s=0.02, max_bytes=1 << 20))
    await bus.append("stored", b"old", timeout_s=DEADLINE_S)
    await anyio.sleep(0.03)  # the age itself is what is tested
    await bus.append("stored", b"new", timeout_s=DEADLINE_S)
    async with bus.consume("S") as deliveries:
        assert [each.message.data for each in await take(deliveries, 1)] == [b"new"]


async def test_to_delay_messages_a_hub_must_be_entered() -> None:
    bus = MemoryHub(plan(a=[Delay(1.0)])).connect("a")
    async with bus.subscribe("s"):
        with pytest.raises(RuntimeError, match="async with"):
            await bus.publish("s", b"")


async def test_leaving_a_hub_by_an_error_raises_that_very_error() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with MemoryHub():
            raise KeyError("mine")
