"""What every carrier of the `Store` port promises: in memory, under virtual time, and on etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from proto.wire.errors import LeaseLost
from proto.wire.etcd.connection import EtcdSettings
from proto.wire.etcd.store import EtcdStore
from proto.wire.memory.store import MemoryEtcd
from proto.wire.ports import Deleted, Lease, Put, Store, Synced, WatchEvent
from tests.support.etcd_server import EtcdServer, etcd_server

pytestmark = pytest.mark.anyio

CARRIERS = [("asyncio", "memory"), ("trio", "memory"), ("asyncio", "etcd")]


@pytest.fixture(params=CARRIERS, ids="-".join)
def carrier(request: pytest.FixtureRequest) -> tuple[str, str]:
    loop, name = request.param
    return loop, name


@pytest.fixture
def anyio_backend(carrier: tuple[str, str]) -> str:
    return carrier[0]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(Path(tmp_path_factory.mktemp("etcd"))) as server:
        yield server


@pytest.fixture
async def store(carrier: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if carrier[1] == "memory":
        yield MemoryEtcd().connect()
        return
    etcd: EtcdServer = request.getfixturevalue("etcd")
    etcd.control("del", "", "--from-key")
    async with EtcdStore(EtcdSettings(endpoints=(etcd.endpoint,))) as connected:
        yield connected


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    with anyio.fail_after(10):
        return [await anext(events) for _ in range(count)]


async def test_a_value_is_read_as_it_was_written(store: Store) -> None:
    value = bytes(range(256))
    revision = await store.put("/a/ü", value)
    entry = await store.get("/a/ü")
    assert entry is not None
    assert (entry.key, entry.value, entry.revision, entry.lease) == ("/a/ü", value, revision, 0)
    assert await store.get("/a/other") is None


async def test_revisions_grow(store: Store) -> None:
    first = await store.put("/a", b"1")
    assert await store.put("/b", b"2") > first


async def test_a_listing_is_ordered_and_ends_at_its_prefix(store: Store) -> None:
    for key in ("/a/2", "/a/1", "/ab", "/b", "/a"):
        await store.put(key, b"")
    assert [entry.key for entry in await store.list("/a/")] == ["/a/1", "/a/2"]
    assert [entry.key for entry in await store.list("/nobody/")] == []


async def test_a_listing_may_be_longer_than_a_page(store: Store) -> None:
    keys = [f"/many/{i:05}" for i in range(1_050)]
    for key in keys:
        await store.put(key, b"x")
    assert [entry.key for entry in await store.list("/many/")] == keys


async def test_a_guarded_write_happens_once(store: Store) -> None:
    revision = await store.put_if("/a", b"first", expected_revision=0)
    assert revision is not None
    assert await store.put_if("/a", b"second", expected_revision=0) is None
    assert await store.put_if("/a", b"second", expected_revision=revision) is not None
    assert await store.put_if("/a", b"third", expected_revision=revision) is None
    entry = await store.get("/a")
    assert entry is not None
    assert entry.value == b"second"


async def test_deleting_tells_whether_there_was_something(store: Store) -> None:
    revision = await store.put("/a", b"")
    assert not await store.delete("/a", expected_revision=revision + 1)
    assert await store.delete("/a", expected_revision=revision)
    assert not await store.delete("/a")
    await store.put("/a", b"")
    assert await store.delete("/a")


async def test_a_watch_tells_the_state_and_then_every_change_in_order(store: Store) -> None:
    await store.put("/w/old", b"0")
    async with store.watch("/w/") as events:
        first, synced = await take(events, 2)
        assert isinstance(first, Put)
        assert first.entry.key == "/w/old"
        assert isinstance(synced, Synced)
        await store.put("/other", b"")
        for i in range(5):
            await store.put(f"/w/{i}", str(i).encode())
        await store.delete("/w/3")
        changes = await take(events, 6)
    assert [c.entry.value for c in changes[:5] if isinstance(c, Put)] == [
        b"0",
        b"1",
        b"2",
        b"3",
        b"4",
    ]
    assert isinstance(changes[5], Deleted)
    assert changes[5].key == "/w/3"


async def test_two_watches_see_the_same(store: Store) -> None:
    async with store.watch("/w/") as one, store.watch("/w/") as two:
        assert isinstance((await take(one, 1))[0], Synced)
        assert isinstance((await take(two, 1))[0], Synced)
        await store.put("/w/a", b"")
        assert await take(one, 1) == await take(two, 1)


async def test_a_cancelled_watch_leaves_nothing_behind(store: Store) -> None:
    with anyio.move_on_after(0.2):
        async with store.watch("/w/") as events:
            async for _ in events:
                pass
    await store.put("/w/a", b"")
    async with store.watch("/w/") as events:
        assert isinstance((await take(events, 1))[0], Put)


async def test_what_lives_under_a_lease_dies_with_it(store: Store) -> None:
    lease = await store.grant(60)
    await store.put("/l/a", b"", lease=lease)
    async with store.watch("/l/") as events:
        first, _ = await take(events, 2)
        assert isinstance(first, Put)
        assert first.entry.lease == lease.id
        await store.revoke(lease)
        assert isinstance((await take(events, 1))[0], Deleted)
    await store.revoke(lease)  # fine if it has ended already


async def test_an_unkept_lease_ends_and_a_kept_one_does_not(store: Store) -> None:
    kept, unkept = await store.grant(2), await store.grant(2)
    await store.put("/l/kept", b"", lease=kept)
    await store.put("/l/unkept", b"", lease=unkept)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(store.keep_alive, kept)
        async with store.watch("/l/") as events:
            await take(events, 3)
            [gone] = await take(events, 1)
        assert isinstance(gone, Deleted)
        assert gone.key == "/l/unkept"
        assert await store.get("/l/kept") is not None
        tasks.cancel_scope.cancel()


async def test_a_lease_that_is_gone_is_lost(store: Store) -> None:
    lease = await store.grant(60)
    await store.revoke(lease)
    with pytest.raises(LeaseLost):
        await store.put("/l/a", b"", lease=lease)
    with anyio.fail_after(10), pytest.raises(LeaseLost):
        await store.keep_alive(lease)
    with pytest.raises(LeaseLost):
        await store.put("/l/a", b"", lease=Lease(123_456, 10))
