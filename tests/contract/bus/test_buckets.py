"""Buckets, as every carrier of the bus promises them."""

from __future__ import annotations

import anyio
import nats
import pytest
from nats.js.api import StreamConfig

from controlplane.local.ports import free_ports
from proto.wire.errors import BucketFull, BusTimeout, StreamMissing
from proto.wire.memory.bus import MemoryHub
from proto.wire.memory.faults import Deliver, Drop
from proto.wire.nats.buckets import NatsBucket
from proto.wire.nats.bus import NatsBus
from proto.wire.ports import Bucket, BucketSpec, Cell
from tests.contract.bus.carriers import (
    DEADLINE_S,
    ON_NATS,
    Connect,
    memory_only,
    nats_only,
    quick_settings,
    take,
)
from tests.support.link import SLOW_S, Link, Trouble
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.anyio

SPEC = BucketSpec("tickets", max_age_s=3600.0, max_bytes=1 << 20)
PAGE_KEYS = 100_000
"""As many subjects a server tells at once."""
SMALL = BucketSpec("small", max_age_s=3600.0, max_bytes=20_000)


async def test_a_key_is_created_once(connect: Connect) -> None:
    async with connect("a") as a, connect("b") as b:
        mine, theirs = await a.bucket(SPEC), await b.bucket(SPEC)
        revision = await mine.create("k.1", b"mine")
        assert revision is not None
        assert await theirs.create("k.1", b"theirs") is None
        assert await theirs.get("k.1") == Cell("k.1", b"mine", revision)
        assert await theirs.get("k.2") is None


async def test_a_write_over_what_was_not_seen_is_refused(connect: Connect) -> None:
    async with connect("a") as a, connect("b") as b:
        mine, theirs = await a.bucket(SPEC), await b.bucket(SPEC)
        first = await mine.create("k", b"1")
        assert first is not None
        second = await mine.update("k", b"2", revision=first)
        assert second is not None and second > first
        assert await theirs.update("k", b"3", revision=first) is None
        assert await theirs.get("k") == Cell("k", b"2", second)
        assert await theirs.update("other", b"3", revision=first) is None


async def test_of_many_writers_one_wins(connect: Connect) -> None:
    async with connect("a") as a, connect("b") as b:
        buckets = [await a.bucket(SPEC), await b.bucket(SPEC)]
        first = await buckets[0].create("k", b"")
        assert first is not None
        won: list[int] = []

        async def write(n: int) -> None:
            if await buckets[n % 2].update("k", bytes([n]), revision=first) is not None:
                won.append(n)

        async with anyio.create_task_group() as tasks:
            for n in range(10):
                tasks.start_soon(write, n)
        assert len(won) == 1
        cell = await buckets[0].get("k")
        assert cell is not None and cell.value == bytes(won)


async def test_what_is_deleted_is_gone_and_may_come_again(connect: Connect) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(SPEC)
        first = await bucket.create("k", b"1")
        assert first is not None
        assert not await bucket.delete("k", revision=first + 100)
        assert await bucket.delete("k", revision=first)
        assert not await bucket.delete("k", revision=first)
        assert await bucket.get("k") is None
        assert await bucket.list() == []
        assert await bucket.update("k", b"2", revision=first) is None
        again = await bucket.create("k", b"3")
        assert again is not None and again > first
        assert await bucket.get("k") == Cell("k", b"3", again)


async def test_all_that_is_there_is_listed(connect: Connect) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(SPEC)
        assert await bucket.list() == []
        for n in range(5):
            await bucket.create(f"k.{n}", bytes([n]))
        cell = await bucket.get("k.3")
        assert cell is not None
        await bucket.delete("k.3", revision=cell.revision)
        listed = {cell.key: cell.value for cell in await bucket.list()}
        assert listed == {f"k.{n}": bytes([n]) for n in (0, 1, 2, 4)}


async def test_a_watch_begins_with_what_is_there_and_goes_on(connect: Connect) -> None:
    async with connect("a") as a, connect("b") as b:
        mine, theirs = await a.bucket(SPEC), await b.bucket(SPEC)
        first = await mine.create("k", b"1")
        async with theirs.watch() as cells:
            assert await take(cells, 1) == [Cell("k", b"1", first or 0)]
            second = await mine.update("k", b"2", revision=first or 0)
            assert await take(cells, 1) == [Cell("k", b"2", second or 0)]
            other = await mine.create("l", b"3")
            assert await take(cells, 1) == [Cell("l", b"3", other or 0)]


@nats_only
async def test_all_is_listed_in_less_than_a_round_trip_each(
    connect: Connect, server: NatsServer
) -> None:
    link = Link(free_ports(1)[0], int(server.url.rpartition(":")[2]))
    async with anyio.create_task_group() as tasks, connect("near") as near:
        await tasks.start(link.run)
        bucket = await near.bucket(SPEC)
        for n in range(50):
            await bucket.create(f"k.{n}", b"")
        async with NatsBus(
            quick_settings(server, servers=(f"nats://127.0.0.1:{link.port}",))
        ) as far:
            distant = await far.bucket(SPEC)
            link.be(Trouble.SLOW)
            listed = await distant.list(timeout_s=10 * SLOW_S)
            link.be(None)
        assert {cell.key for cell in listed} == {f"k.{n}" for n in range(50)}
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("carrier", [ON_NATS[-1]], ids=str, indirect=True)
async def test_a_server_tells_of_many_keys_in_pages(connect: Connect) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(BucketSpec("many", max_age_s=3600.0, max_bytes=1 << 30))
        assert isinstance(bucket, NatsBucket)
        for n in range(PAGE_KEYS + 1):
            await bus.publish(f"$KV.many.{n}", b"")
        with anyio.fail_after(DEADLINE_S):
            while await bucket.get(f"{PAGE_KEYS}") is None:
                continue
        assert len(await bucket._keys(DEADLINE_S)) == PAGE_KEYS + 1


async def fill(bucket: Bucket, name: str, value: bytes) -> list[str]:
    """The keys that found room."""
    keys: list[str] = []
    with pytest.raises(BucketFull):
        while True:
            key = f"{name}.{len(keys)}"
            assert await bucket.create(key, value) is not None
            keys.append(key)
            assert len(keys) < 10_000, "it is never full"
    return keys


async def revision_of(bucket: Bucket, key: str) -> int:
    cell = await bucket.get(key)
    assert cell is not None
    return cell.revision


async def test_a_full_bucket_takes_no_more_and_loses_nothing(connect: Connect) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(SMALL)
        keys = await fill(bucket, "k", b"x" * 1_000)
        assert len(keys) >= 15
        assert sorted(cell.key for cell in await bucket.list()) == sorted(keys)
        first = await revision_of(bucket, keys[0])
        with pytest.raises(BucketFull):
            await bucket.update(keys[0], b"y" * 3_000, revision=first)
        assert await bucket.get(keys[0]) == Cell(keys[0], b"x" * 1_000, first)
        assert await bucket.update(keys[0], b"y" * 990, revision=first) is not None
        assert await bucket.delete(keys[1], revision=await revision_of(bucket, keys[1]))
        assert await bucket.create("k.new", b"x" * 1_000) is not None


async def test_what_is_small_can_be_deleted_from_a_full_bucket(connect: Connect) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(SMALL)
        await fill(bucket, "k", b"x" * 1_000)
        key, *others = await fill(bucket, "small", b"x")
        revision = await revision_of(bucket, key)
        assert not await bucket.delete(key, revision=revision - 1)
        assert await bucket.get(key) is not None
        assert await bucket.delete(key, revision=revision)
        assert await bucket.get(key) is None
        assert not await bucket.delete(key, revision=revision)
        assert await bucket.create(key, b"x") is not None
        assert all([await bucket.get(other) for other in others])


@nats_only
async def test_a_bucket_that_used_to_drop_what_was_oldest_does_so_no_more(
    connect: Connect, server: NatsServer
) -> None:
    client = await nats.connect(server.url)
    try:
        old = StreamConfig("KV_small", subjects=["$KV.small.>"], max_msgs_per_subject=1)
        old = old.evolve(allow_rollup_hdrs=True, deny_delete=True, max_bytes=SMALL.max_bytes)
        await client.jsm().add_stream(old)
    finally:
        await client.close()
    async with connect("a") as bus:
        bucket = await bus.bucket(SMALL)
        keys = await fill(bucket, "k", b"x" * 1_000)
        assert len(await bucket.list()) == len(keys)


@nats_only
async def test_a_bucket_survives_the_death_of_its_server(
    connect: Connect, server: NatsServer
) -> None:
    async with connect("a") as bus:
        bucket = await bus.bucket(SPEC)
        first = await bucket.create("k", b"1")
        async with bucket.watch() as cells:
            await take(cells, 1)
            server.kill()
            server.start()
            with anyio.fail_after(DEADLINE_S):
                while True:
                    try:
                        second = await bucket.update("k", b"2", revision=first or 0, timeout_s=1.0)
                        break
                    except BusTimeout:
                        continue
            cell = await bucket.get("k")
            assert cell is not None and cell.value == b"2"
            assert second in (None, cell.revision)
            assert await take(cells, 1) == [cell]


@nats_only
async def test_a_server_without_jetstream_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = NatsServer(tmp_path_factory.mktemp("plain"), jetstream=False)
    server.start()
    try:
        async with NatsBus(quick_settings(server)) as bus:
            with pytest.raises(StreamMissing, match="JetStream"):
                await bus.bucket(SPEC)
    finally:
        server.stop()


@memory_only
async def test_a_lost_answer_is_not_a_lost_write(connect: Connect) -> None:
    del connect
    hub = MemoryHub(
        lambda sender, _subject, _receiver: lose[0] if sender == "tickets" else Deliver()
    )
    lose: list[Deliver | Drop] = [Drop()]
    bucket = await hub.connect("a").bucket(SPEC)
    with pytest.raises(BusTimeout):
        await bucket.create("k", b"1", timeout_s=0.01)
    lose[0] = Deliver()
    cell = await bucket.get("k")
    assert cell is not None and cell.value == b"1"
