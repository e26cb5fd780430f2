"""A store in memory with a fleet written into it, and a view that follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from controlplane.registry.membership import Change
from controlplane.registry.view import RegistryView
from proto.wire.memory.store import MemoryEtcd, MemoryStore
from proto.wire.ports import Lease
from proto.workers import ModelCard, WorkerRecord
from tests.unit.controlplane.registry.records import KEYS, entry

HEARD_S = 5.0


class Fleet:
    """What agents write (`put`, `delete`), and the store as a service sees it (`link`)."""

    def __init__(self) -> None:
        etcd = MemoryEtcd()
        self.agents: MemoryStore = etcd.connect()
        self.link: MemoryStore = etcd.connect()

    async def put(self, *records: WorkerRecord | ModelCard, lease: Lease | None = None) -> None:
        for record in records:
            await self.agents.put(*entry(record), lease=lease)

    async def delete(self, record: WorkerRecord | ModelCard) -> None:
        await self.agents.delete(entry(record)[0])

    async def garble(self, record: WorkerRecord | ModelCard) -> str:
        """Make a record unreadable; returns its key."""
        key, _ = entry(record)
        await self.agents.put(key, b"garbled")
        return key


class Ears:
    """A subscriber that can be waited for."""

    def __init__(self, view: RegistryView) -> None:
        self._heard: list[Change] = []
        self._more = anyio.Event()
        self.unsubscribe = view.subscribe(self._take)

    async def hear(self, count: int) -> list[Change]:
        """The next `count` changes."""
        with anyio.fail_after(HEARD_S):
            while len(self._heard) < count:
                await self._more.wait()
        heard, self._heard = self._heard[:count], self._heard[count:]
        return heard

    def nothing(self) -> bool:
        """No more has come than was waited for."""
        return not self._heard

    def _take(self, change: Change) -> None:
        self._heard.append(change)
        self._more.set()
        self._more = anyio.Event()


@asynccontextmanager
async def running(fleet: Fleet) -> AsyncIterator[RegistryView]:
    """A view of the fleet, ready."""
    view = RegistryView(fleet.link, KEYS)
    async with anyio.create_task_group() as tasks:
        with anyio.fail_after(HEARD_S):
            await tasks.start(lambda *, task_status: view.run(task_status=task_status))
        yield view
        tasks.cancel_scope.cancel()
