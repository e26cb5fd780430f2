"""Tenants in the store: known before anybody is served, changed at once, never half."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from controlplane.gateway.admission import Admission
from controlplane.gateway.directory import Directory
from controlplane.gateway.openai import ClientError
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.tenants import BadTenants, Tenant, Tenants, key_hash
from proto.subjects import Keys
from proto.wire.memory.store import MemoryEtcd

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"]),
]

KEYS = Keys("c")


class Office:
    """A store with tenants, and a door that follows it."""

    def __init__(self) -> None:
        self.store = MemoryEtcd().connect()
        settings = GatewaySettings(tenants_in_store=True, host="0.0.0.0")
        self.door = Admission(settings, b"k", lambda: 0.0)
        self.news = anyio.Event()

    async def put(self, name: str, key: str, **limits: int) -> None:
        tenant = Tenant(name=name, keys=(key_hash(key),), **limits)
        await self.write(name, tenant.model_dump_json().encode())

    async def write(self, name: str, value: bytes) -> None:
        self.news = anyio.Event()
        await self.store.put(KEYS.tenant(name), value)

    def use(self, tenants: Tenants) -> None:
        self.door.use(tenants)
        self.news.set()

    def known(self, key: str) -> str:
        try:
            return self.door.tenant(f"Bearer {key}").name
        except ClientError as error:
            assert error.status == 401
            return ""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        directory = Directory(self.store, KEYS, self.use)
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: directory.run(task_status=task_status))
            yield
            tasks.cancel_scope.cancel()


async def test_who_is_in_the_store_is_let_in_from_the_start_and_until_it_is_deleted(
    anyio_backend: str,
) -> None:
    office = Office()
    await office.put("acme", "acme-key")
    assert office.known("acme-key") == "", "nobody is known before the store has spoken"
    async with office.open():
        assert office.known("acme-key") == "acme"
        await office.put("other", "other-key")
        await office.news.wait()
        assert office.known("other-key") == "other"
        office.news = anyio.Event()
        await office.store.delete(KEYS.tenant("acme"))
        await office.news.wait()
        assert (office.known("acme-key"), office.known("other-key")) == ("", "other")


@pytest.mark.parametrize("value", [b"{", b'{"keys": ["plain"]}', b'{"limit": 3}'])
async def test_what_cannot_be_read_changes_nothing(
    anyio_backend: str, value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    office = Office()
    await office.put("acme", "acme-key")
    async with office.open():
        await office.write("acme", value)
        await office.news.wait()
        assert office.known("acme-key") == "acme"
    assert "tenant acme in the store cannot be used" in caplog.text
    assert "plain" not in caplog.text


async def test_two_with_one_key_are_not_taken_over(anyio_backend: str) -> None:
    office = Office()
    await office.put("acme", "acme-key")
    async with office.open():
        await office.put("thief", "acme-key")
        await office.put("other", "other-key")
        with anyio.move_on_after(0.2):
            await office.news.wait()
        assert office.known("acme-key") == "acme"
        assert office.known("other-key") == ""


async def test_a_key_is_revoked_though_two_others_are_the_same(anyio_backend: str) -> None:
    office = Office()
    for name in ("acme", "left", "changes"):
        await office.put(name, f"{name}-key")
    async with office.open():
        await office.put("thief", "acme-key")
        await office.store.delete(KEYS.tenant("left"))
        await office.put("changes", "new-key")
        with anyio.move_on_after(0.2):
            while office.known("left-key") or office.known("changes-key"):
                office.news = anyio.Event()
                await office.news.wait()
        assert office.known("acme-key") == "acme"
        for key in ("left-key", "changes-key", "new-key"):
            assert office.known(key) == ""
        await office.store.delete(KEYS.tenant("thief"))
        with anyio.fail_after(5):
            while not office.known("new-key"):
                office.news = anyio.Event()
                await office.news.wait()
        assert office.known("new-key") == "changes"


async def test_a_file_and_the_store_at_once_are_refused(anyio_backend: str) -> None:
    both = GatewaySettings.model_validate({"tenants": "t.toml", "tenants_in_store": True})
    with pytest.raises(BadTenants, match="set one of"):
        Admission(both, b"k", lambda: 0.0)
