"""What a bus on NATS survives: its server killed, stopped, frozen, slow to come."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from proto.wire.errors import BusError, BusTimeout, BusUnavailable, StreamMissing
from proto.wire.nats.buckets import NatsBucket
from proto.wire.nats.bus import NatsBus
from proto.wire.nats.connection import Connection
from proto.wire.ports import Bus, Delivery, Endpoint, Message, StreamSpec
from tests.contract.bus.carriers import (
    DEADLINE_S,
    ECHO,
    echo,
    nats_only,
    nobody_serves,
    quick_settings,
    take,
    until,
)
from tests.support.nats_server import NatsServer, nats_server

pytestmark = [pytest.mark.anyio, nats_only]

SPEC = StreamSpec("S", ("stored",), max_age_s=60.0, max_bytes=1 << 20)


async def lost_and_found(bus: NatsBus, server: NatsServer) -> None:
    """The server dies; the bus notices, and is back once the server is."""
    assert bus.connected
    server.kill()
    await until(lambda: not bus.connected)
    server.start()
    await until(lambda: bus.connected)


async def answered(bus: Bus) -> bytes:
    return (await bus.request("echo", b"hello", timeout_s=DEADLINE_S)).data


async def read_up_to(deliveries: AsyncIterator[Delivery], last: bytes) -> None:
    """Acknowledge all; a server that is killed may have forgotten what it was told just before."""
    data = b""
    while data != last:
        (delivery,) = await take(deliveries, 1)
        data = delivery.message.data
        await delivery.ack()


async def test_all_goes_on_after_the_server_was_killed(server: NatsServer) -> None:
    async with (
        NatsBus(quick_settings(server)) as bus,
        bus.subscribe("s.*") as messages,
        bus.serve(ECHO, [echo()]),
    ):
        await bus.ensure_stream(SPEC)
        await bus.append("stored", b"1", timeout_s=DEADLINE_S)
        async with (
            bus.consume("S", durable="d") as durable,
            bus.consume("S") as ephemeral,
        ):
            for n in (2, 3):
                await lost_and_found(bus, server)
                await bus.publish("s.x", b"after")
                assert [each.data for each in await take(messages, 1)] == [b"after"]
                assert await answered(bus) == b"hello"
                await bus.append("stored", b"%d" % n, timeout_s=DEADLINE_S)
                await read_up_to(durable, b"%d" % n)
                await read_up_to(ephemeral, b"%d" % n)


async def test_a_consumer_that_the_server_forgot_is_made_again_where_it_was(
    server: NatsServer,
) -> None:
    async with NatsBus(quick_settings(server)) as bus:
        await bus.ensure_stream(SPEC)
        for n in range(1, 6):
            await bus.append("stored", b"%d" % n, timeout_s=DEADLINE_S)
        async with bus.consume("S", durable="d") as deliveries:
            first, second, third, *_ = await take(deliveries, 5)
            await first.ack()
            await third.ack()
            await bus.request("$JS.API.CONSUMER.DELETE.S.d", b"", timeout_s=DEADLINE_S)
            again = [each.sequence for each in await take(deliveries, 4)]
            assert again == [second.sequence, 3, 4, 5]


async def test_a_server_that_is_frozen_is_noticed_and_survived(server: NatsServer) -> None:
    async with (
        NatsBus(quick_settings(server)) as bus,
        bus.subscribe("s") as messages,
        bus.serve(ECHO, [echo()]),
    ):
        server.freeze()
        with pytest.raises((BusTimeout, BusUnavailable)):
            await bus.request("echo", b"", timeout_s=0.1)
        await until(lambda: not bus.connected)
        server.thaw()
        await until(lambda: bus.connected)
        await bus.publish("s", b"after")
        assert (await take(messages, 1))[0].data == b"after"
        assert await answered(bus) == b"hello"


async def test_a_server_that_is_frozen_with_all_buffers_full_is_survived_too(
    server: NatsServer,
) -> None:
    settings = quick_settings(server, outgoing_bytes=1 << 20, call_s=0.2)
    async with NatsBus(settings) as bus:
        server.freeze()
        with anyio.fail_after(DEADLINE_S), pytest.raises(BusUnavailable):
            while True:
                await bus.publish("s", bytes(100_000))
        await until(lambda: not bus.connected)
        server.thaw()
        await until(lambda: bus.connected)


async def test_a_subscription_given_up_while_the_server_was_frozen_is_not_made_later(
    server: NatsServer,
) -> None:
    async with NatsBus(quick_settings(server)) as bus, anyio.create_task_group() as tasks:

        async def subscribe() -> None:
            async with bus.subscribe("s"):
                pass

        server.freeze()
        for _ in range(70):
            await bus.publish("elsewhere", bytes(100_000))
        tasks.start_soon(subscribe)
        await until(lambda: not bus.connected)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            server.thaw()
            await until(lambda: bus.connected)
            async with NatsBus(quick_settings(server)) as other:
                await nobody_serves(other, "s")


async def test_leaving_while_the_server_is_frozen_takes_no_longer_than_it_may(
    server: NatsServer,
) -> None:
    tasks = len(asyncio.all_tasks())
    settings = quick_settings(server, call_s=0.2, ping_interval_s=30.0)
    with anyio.fail_after(DEADLINE_S):
        async with NatsBus(settings) as bus, bus.subscribe("s"), bus.serve(ECHO, [echo()]):
            server.freeze()
            with pytest.raises(BusUnavailable):
                while True:
                    await bus.publish("s", bytes(100_000))
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    gc.collect()


async def test_a_storm_of_restarts_under_load_breaks_nothing(server: NatsServer) -> None:
    async def load(bus: Bus) -> None:
        while True:
            try:
                await bus.publish("s", bytes(1000))
                await bus.request("echo", b"", timeout_s=0.2)
                async with bus.subscribe("t"):
                    pass
            except BusError:
                pass

    settings = quick_settings(server, call_s=0.2)
    async with NatsBus(settings) as bus, bus.serve(ECHO, [echo()]):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(load, bus)
            for _ in range(6):
                await anyio.sleep(0.1)  # some time at work between two restarts
                server.restart()
            tasks.cancel_scope.cancel()
        await until(lambda: bus.connected)
        assert await answered(bus) == b"hello"


async def test_what_is_published_while_the_server_is_away_waits_up_to_the_bound(
    server: NatsServer,
) -> None:
    settings = quick_settings(server, outgoing_bytes=100_000)
    async with NatsBus(settings) as bus, bus.subscribe("s") as messages:
        server.kill()
        await until(lambda: not bus.connected)
        sent = 0
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
            while True:
                await bus.publish("s", bytes(1000))
                sent += 1
        assert 50 < sent <= 100
        server.start()
        await until(lambda: bus.connected)
        assert len(await take(messages, sent)) == sent


async def test_a_request_waits_for_the_server_or_was_certainly_not_sent(
    server: NatsServer,
) -> None:
    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [echo()]):
        server.kill()
        await until(lambda: not bus.connected)
        with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
            await bus.request("echo", b"", timeout_s=0.05)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answered, bus)
            server.start()


async def test_an_append_goes_on_through_a_freeze_and_is_stored_once(server: NatsServer) -> None:
    async with NatsBus(quick_settings(server)) as bus:
        await bus.ensure_stream(SPEC)
        sequences: list[int] = []

        async def append() -> None:
            sequences.append(await bus.append("stored", b"once", timeout_s=DEADLINE_S))

        server.freeze()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append)
            await until(lambda: not bus.connected)
            server.thaw()
        assert sequences == [1]
        assert await bus.append("stored", b"next", timeout_s=DEADLINE_S) == 2


def saying(subject: str, *answers: bytes) -> tuple[Endpoint, list[bytes]]:
    """An endpoint that gives these answers, as JetStream words them; and what it has not said."""
    left = list(answers)

    async def handle(message: Message) -> bytes:
        return left.pop(0) if len(left) > 1 else left[0]

    return Endpoint("jetstream", subject, handle), left


NO_QUORUM = b"""{"error":{"code":503,"err_code":10008,
"description":"JetStream system temporarily unavailable"},"stream":"S","seq":0}"""


async def test_an_append_goes_on_until_a_refusal_that_passes_has_passed(server: NatsServer) -> None:
    endpoint, left = saying("stored", NO_QUORUM, NO_QUORUM, b'{"stream":"S","seq":7}')
    async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [endpoint]):
        assert await bus.append("stored", b"", timeout_s=DEADLINE_S) == 7
        left.insert(0, NO_QUORUM)
        left.pop()
        with pytest.raises(StreamMissing, match="temporarily unavailable"):
            await bus.append("stored", b"", timeout_s=0.2)


async def test_a_bucket_that_refuses_what_passes_may_be_asked_again(tmp_path: Path) -> None:
    with nats_server(tmp_path, jetstream=False) as server:
        kept, _ = saying("$JS.API.STREAM.MSG.GET.KV_b", NO_QUORUM)
        listed, _ = saying("$JS.API.STREAM.INFO.KV_b", NO_QUORUM)
        written, _ = saying("$KV.b.k", NO_QUORUM)
        connection = Connection(quick_settings(server))
        async with NatsBus(quick_settings(server)) as bus, bus.serve(ECHO, [kept, listed, written]):
            await connection.open()
            try:
                bucket = NatsBucket(connection, "b")
                for ask in (bucket.get("k"), bucket.list(), bucket.create("k", b"")):
                    with pytest.raises(BusTimeout, match="temporarily unavailable"):
                        await ask
            finally:
                await connection.close()


async def test_a_first_connection_waits_for_a_server_that_is_late(server: NatsServer) -> None:
    server.stop()
    async with anyio.create_task_group() as tasks:

        async def connect() -> None:
            async with NatsBus(quick_settings(server)) as bus:
                assert bus.connected

        tasks.start_soon(connect)
        await anyio.sleep(0.2)  # for a first attempt that fails
        server.start()


async def test_no_server_is_told_by_its_address_and_what_to_do(server: NatsServer) -> None:
    server.stop()
    tasks = len(asyncio.all_tasks())
    settings = quick_settings(server, connect_s=0.3)
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:\d+ .*nats-server"):
        async with NatsBus(settings):
            pass
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    gc.collect()


async def test_a_server_that_is_frozen_from_the_start_is_told_too(server: NatsServer) -> None:
    server.freeze()
    with pytest.raises(BusUnavailable, match="within"):
        async with NatsBus(quick_settings(server, connect_s=0.3)):
            pass
    gc.collect()


async def test_a_server_without_jetstream_is_told_with_what_to_do(tmp_path: Path) -> None:
    with nats_server(tmp_path, jetstream=False) as server:
        async with NatsBus(quick_settings(server)) as bus:
            with pytest.raises(StreamMissing, match="--jetstream"):
                await bus.ensure_stream(SPEC)
            with pytest.raises(StreamMissing, match="stored"):
                await bus.append("stored", b"", timeout_s=DEADLINE_S)
            with pytest.raises(StreamMissing, match="--jetstream"):
                async with bus.consume("S"):
                    pass
