"""Publish and subscribe, as every carrier of the bus promises it."""

from __future__ import annotations

import logging

import anyio
import pytest
from anyio.lowlevel import checkpoint

from proto.wire.inbox import TURN_MESSAGES
from tests.contract.bus.carriers import DEADLINE_S, Connect, nothing_comes, take, until

pytestmark = pytest.mark.anyio

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


async def test_messages_come_whole_and_in_the_order_they_were_sent(connect: Connect) -> None:
    payloads = [n.to_bytes(4, "big") * (n % 40) for n in range(2000)]
    async with (
        connect("a") as sender,
        connect("b") as receiver,
        receiver.subscribe("kv.one") as messages,
    ):
        for payload in payloads:
            await sender.publish("kv.one", payload)
        received = await take(messages, len(payloads))
        assert [message.data for message in received] == payloads
        assert {message.subject for message in received} == {"kv.one"}
        assert messages.dropped == 0


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("kv.a", ["kv.a"]),
        ("kv.*", ["kv.a", "kv.b"]),
        ("*.a", ["kv.a", "load.a"]),
        ("kv.>", ["kv.a", "kv.b", "kv.a.deep"]),
        ("kv.*.deep", ["kv.a.deep"]),
        (">", ["kv", "kv.a", "kv.b", "kv.a.deep", "load.a"]),
    ],
)
async def test_a_star_is_one_token_and_a_final_angle_one_or_more(
    connect: Connect, pattern: str, heard: list[str]
) -> None:
    async with connect("a") as bus, bus.subscribe(pattern) as messages:
        for subject in ("kv", "kv.a", "kv.b", "kv.a.deep", "load.a", "end"):
            if subject != "end" or pattern == ">":
                await bus.publish(subject, b"")
        expected = [*heard, "end"] if pattern == ">" else heard
        assert [message.subject for message in await take(messages, len(expected))] == expected
        assert await nothing_comes(messages)


async def test_headers_come_as_they_were_sent_and_none_is_no_block(connect: Connect) -> None:
    async with connect("a") as bus, bus.subscribe("s") as messages:
        await bus.publish("s", b"with", headers=TRACE)
        await bus.publish("s", b"without")
        with_headers, without = await take(messages, 2)
        assert (with_headers.data, dict(with_headers.headers)) == (b"with", TRACE)
        assert (without.data, dict(without.headers)) == (b"without", {})


async def test_a_full_queue_drops_the_newest_counts_them_and_says_so_once(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with connect("a") as bus, bus.subscribe("s", queue_messages=10) as messages:
        for n in range(25):
            await bus.publish("s", bytes([n]))
        await until(lambda: messages.dropped >= 15)
        assert [message.data for message in await take(messages, 10)] == [
            bytes([n]) for n in range(10)
        ]
        assert messages.dropped == 15
        await bus.publish("s", b"room again")
        assert [message.data for message in await take(messages, 1)] == [b"room again"]
    assert len(caplog.records) == 1


async def test_a_reader_of_a_full_queue_lets_others_have_a_turn(connect: Connect) -> None:
    count = 4 * TURN_MESSAGES
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with connect("a") as bus, bus.subscribe("s") as messages:
        for _ in range(count + 1):
            await bus.publish("s", b"")
        await take(messages, 1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await take(messages, count)
            tasks.cancel_scope.cancel()
    assert turns >= 3


async def test_a_cancelled_wait_loses_no_message(connect: Connect) -> None:
    async with connect("a") as bus, bus.subscribe("s") as messages:
        assert await nothing_comes(messages)
        await bus.publish("s", b"later")
        assert (await take(messages, 1))[0].data == b"later"


async def test_after_leaving_nothing_comes_and_what_came_before_ends(connect: Connect) -> None:
    async with connect("a") as bus, bus.subscribe("s") as witness:
        async with bus.subscribe("s") as messages:
            await bus.publish("s", b"first")
            await take(witness, 1)
            await take(messages, 1)
        await bus.publish("s", b"second")
        await take(witness, 1)
        with anyio.fail_after(DEADLINE_S):
            assert [message async for message in messages] == []


async def test_leaving_by_an_error_raises_that_very_error(connect: Connect) -> None:
    async with connect("a") as bus:
        with pytest.raises(KeyError, match="mine"):
            async with bus.subscribe("s"):
                raise KeyError("mine")


@pytest.mark.parametrize("subject", ["", "with space", "line\r\nbreak"])
async def test_a_subject_that_cannot_be_is_misuse(connect: Connect, subject: str) -> None:
    async with connect("a") as bus:
        with pytest.raises(ValueError, match="subject"):
            await bus.publish(subject, b"")
        with pytest.raises(ValueError, match="subject"):
            async with bus.subscribe(subject):
                pass


@pytest.mark.parametrize("pattern", ["a..b", "a.>.b", "a*.b", ".a"])
async def test_a_pattern_that_cannot_be_is_misuse(connect: Connect, pattern: str) -> None:
    async with connect("a") as bus:
        with pytest.raises(ValueError, match="subject"):
            async with bus.subscribe(pattern):
                pass
