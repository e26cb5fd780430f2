"""Durable streams, as every carrier of the bus promises them."""

from __future__ import annotations

import anyio
import pytest

from proto.wire.errors import StreamMissing
from proto.wire.ports import Bus, Delivery, StreamSpec
from tests.contract.bus.carriers import ACK_WAIT_S, DEADLINE_S, Connect, nothing_comes, take

pytestmark = pytest.mark.anyio

SPEC = StreamSpec("REQUESTS", ("requests", "plans.*"), max_age_s=3600.0, max_bytes=1 << 20)


async def append(bus: Bus, *payloads: bytes) -> list[int]:
    return [
        await bus.append("requests", payload, timeout_s=DEADLINE_S, headers={"n": "v"})
        for payload in payloads
    ]


async def acknowledge(deliveries: list[Delivery]) -> list[bytes]:
    for delivery in deliveries:
        await delivery.ack()
    return [delivery.message.data for delivery in deliveries]


async def test_what_is_appended_is_numbered_and_read_from_the_first(connect: Connect) -> None:
    async with connect("writer") as writer, connect("reader") as reader:
        await writer.ensure_stream(SPEC)
        assert await append(writer, b"a", b"b") == [1, 2]
        await writer.publish("plans.x", b"c")
        async with reader.consume("REQUESTS") as deliveries:
            first = await take(deliveries, 3)
            assert [each.sequence for each in first] == [1, 2, 3]
            assert [each.message.subject for each in first] == ["requests", "requests", "plans.x"]
            assert first[0].message.headers["n"] == "v"
            assert await acknowledge(first) == [b"a", b"b", b"c"]
            await append(writer, b"d")
            assert await acknowledge(await take(deliveries, 1)) == [b"d"]
            assert await nothing_comes(deliveries)


async def test_many_messages_come_in_order(connect: Connect) -> None:
    payloads = [n.to_bytes(2, "big") for n in range(700)]
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        for payload in payloads:
            await bus.publish("requests", payload)
        async with bus.consume("REQUESTS", queue_messages=100) as deliveries:
            received = [await acknowledge(await take(deliveries, 50)) for _ in range(14)]
        assert [data for batch in received for data in batch] == payloads


@pytest.mark.parametrize("ack_wait_s", [ACK_WAIT_S])
async def test_what_is_not_acknowledged_comes_again_and_what_is_does_not(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        await append(bus, b"a", b"b", b"c")
        async with bus.consume("REQUESTS") as deliveries:
            a, b, c = await take(deliveries, 3)
            await acknowledge([b])
            again = await take(deliveries, 2)
            assert [each.sequence for each in again] == [a.sequence, c.sequence]
            await acknowledge(again)


async def test_a_durable_name_goes_on_where_it_last_acknowledged(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        await append(bus, b"a", b"b", b"c", b"d")
        async with bus.consume("REQUESTS", durable="planner") as deliveries:
            await acknowledge(await take(deliveries, 2))
            await take(deliveries, 1)  # read, and left without a word
        async with bus.consume("REQUESTS", durable="planner") as deliveries:
            assert sorted(await acknowledge(await take(deliveries, 2))) == [b"c", b"d"]
        async with bus.consume("REQUESTS", durable="bill") as deliveries:
            assert await acknowledge(await take(deliveries, 4)) == [b"a", b"b", b"c", b"d"]
        async with bus.consume("REQUESTS", durable="planner") as deliveries:
            assert await nothing_comes(deliveries)


async def test_readers_of_one_durable_name_share(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        async with (
            bus.consume("REQUESTS", durable="planner", queue_messages=2) as one,
            bus.consume("REQUESTS", durable="planner", queue_messages=2) as two,
        ):
            received: list[bytes] = []
            done = anyio.Event()

            async def read(deliveries: object) -> None:
                async for delivery in deliveries:  # type: ignore[attr-defined]
                    received.extend(await acknowledge([delivery]))
                    if len(received) == 40:
                        done.set()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, one)
                tasks.start_soon(read, two)
                await append(bus, *(bytes([n]) for n in range(40)))
                with anyio.fail_after(DEADLINE_S):
                    await done.wait()
                tasks.cancel_scope.cancel()
            assert sorted(received) == [bytes([n]) for n in range(40)]


async def test_no_more_than_the_bound_wait_for_an_acknowledgement(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        await append(bus, b"a", b"b", b"c")
        async with bus.consume("REQUESTS", queue_messages=2) as deliveries:
            held = await take(deliveries, 2)
            assert await nothing_comes(deliveries)
            await acknowledge(held)
            assert await acknowledge(await take(deliveries, 1)) == [b"c"]


async def test_limits_drop_the_oldest_and_can_be_changed(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        await append(bus, *(bytes([n]) * 1000 for n in range(8)))
        await bus.ensure_stream(SPEC)
        smaller = StreamSpec(SPEC.name, SPEC.subjects, SPEC.max_age_s, max_bytes=4500)
        await bus.ensure_stream(smaller)
        await append(bus, b"x" * 1000)
        async with bus.consume("REQUESTS") as deliveries:
            oldest, *_, newest = await take(deliveries, 3)
            assert oldest.sequence >= 6
            assert newest.sequence > oldest.sequence


async def test_a_stream_that_is_not_there_is_missing(connect: Connect) -> None:
    async with connect("a") as bus:
        with pytest.raises(StreamMissing, match="requests"):
            await append(bus, b"")
        with pytest.raises(StreamMissing, match="REQUESTS"):
            async with bus.consume("REQUESTS"):
                pass
        with pytest.raises(StreamMissing, match="REQUESTS"):
            async with bus.consume("REQUESTS", durable="planner"):
                pass


async def test_a_cancelled_wait_loses_nothing(connect: Connect) -> None:
    async with connect("a") as bus:
        await bus.ensure_stream(SPEC)
        async with bus.consume("REQUESTS") as deliveries:
            assert await nothing_comes(deliveries)
            await append(bus, b"a")
            assert await acknowledge(await take(deliveries, 1)) == [b"a"]
