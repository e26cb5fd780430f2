"""The store within one process: the promises of etcd, and a link that can be cut.

`MemoryEtcd` is the server and `connect()` gives a client: the `Store` port. Leases end by the
clock of the event loop, so they end in virtual time as well. Anyio only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import count

import anyio
import anyio.lowlevel

from proto.wire.errors import LeaseLost, StoreUnavailable
from proto.wire.ports import Deleted, Entry, Lease, Put, Stale, Synced, WatchEvent

CALL_S = 6.0
"""How long a call over a cut link takes to fail, as with a real server that is silent."""

Change = Put | Deleted


class MemoryEtcd:
    """The server: keys, revisions, leases. Expiry happens whenever somebody looks."""

    def __init__(self) -> None:
        self.revision = 1
        self.entries: dict[str, Entry] = {}
        self.history: list[Change] = []
        self._leases: dict[int, tuple[int, float]] = {}
        self._lease_ids = count(1)
        self._changed = anyio.Event()

    def connect(self) -> MemoryStore:
        """A client; clients share the keys and nothing else."""
        return MemoryStore(self)

    def write(self, key: str, value: bytes, lease: Lease | None) -> int:
        """Raises `LeaseLost`."""
        if lease is not None and lease.id not in self._leases:
            raise LeaseLost(f"there is no lease {lease.id}")
        self.revision += 1
        entry = Entry(key, value, self.revision, lease.id if lease else 0)
        self.entries[key] = entry
        self._record(Put(entry))
        return self.revision

    def erase(self, key: str) -> None:
        self.revision += 1
        del self.entries[key]
        self._record(Deleted(key, self.revision))

    def grant(self, ttl_s: int) -> Lease:
        lease = Lease(next(self._lease_ids), ttl_s)
        self._leases[lease.id] = (ttl_s, anyio.current_time() + ttl_s)
        return lease

    def renew(self, lease: Lease) -> None:
        """Raises `LeaseLost`."""
        self.expire()
        if lease.id not in self._leases:
            raise LeaseLost(f"lease {lease.id} has ended")
        self._leases[lease.id] = (lease.ttl_s, anyio.current_time() + lease.ttl_s)

    def end(self, lease_id: int) -> None:
        """End a lease, and the keys under it."""
        self._leases.pop(lease_id, None)
        for key in [k for k, entry in self.entries.items() if entry.lease == lease_id]:
            self.erase(key)

    def expire(self) -> None:
        """End the leases whose time is over."""
        now_s = anyio.current_time()
        for lease_id in [i for i, (_, until_s) in self._leases.items() if until_s <= now_s]:
            self.end(lease_id)

    def next_expiry_s(self) -> float:
        """When the next lease ends, if nobody renews it."""
        return min((until_s for _, until_s in self._leases.values()), default=float("inf"))

    async def changed(self) -> None:
        """Wait for the next write, or until a lease may have ended."""
        with anyio.move_on_at(self.next_expiry_s()):
            await self._changed.wait()

    def wake(self) -> None:
        """Let everybody look again."""
        self._changed.set()
        self._changed = anyio.Event()

    def _record(self, change: Change) -> None:
        self.history.append(change)
        self.wake()


class MemoryStore:
    """One client of a `MemoryEtcd`."""

    def __init__(self, server: MemoryEtcd) -> None:
        self._server = server
        self._cut = False

    def cut(self) -> None:
        """Lose the link: calls fail, watches go stale, leases are not renewed."""
        self._cut = True
        self._server.wake()

    def mend(self) -> None:
        """The link is back; watches tell what was missed."""
        self._cut = False
        self._server.wake()

    async def get(self, key: str) -> Entry | None:
        await self._reach()
        return self._server.entries.get(key)

    async def list(self, prefix: str) -> Sequence[Entry]:
        await self._reach()
        return self._under(prefix)

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        await self._reach()
        return self._server.write(key, value, lease)

    async def put_if(
        self, key: str, value: bytes, *, expected_revision: int, lease: Lease | None = None
    ) -> int | None:
        await self._reach()
        if self._revision_of(key) != expected_revision:
            return None
        return self._server.write(key, value, lease)

    async def delete(self, key: str, *, expected_revision: int | None = None) -> bool:
        await self._reach()
        present = key in self._server.entries
        if not present or expected_revision not in (None, self._revision_of(key)):
            return False
        self._server.erase(key)
        return True

    async def grant(self, ttl_s: int) -> Lease:
        await self._reach()
        return self._server.grant(ttl_s)

    async def revoke(self, lease: Lease) -> None:
        await self._reach()
        self._server.end(lease.id)

    async def keep_alive(self, lease: Lease) -> None:
        while True:
            if not self._cut:
                self._server.renew(lease)
            await anyio.sleep(lease.ttl_s / 3)

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        async with aclosing(self._events(prefix)) as events:
            yield events

    async def _events(self, prefix: str) -> AsyncGenerator[WatchEvent]:
        seen, stale, begun = 0, False, False
        while True:
            self._server.expire()
            if self._cut:
                if not stale:
                    stale = True
                    yield Stale("the link to the store is cut")
            else:
                news, told = self._news(prefix, seen, begun=begun), not begun or stale
                seen, begun, stale = len(self._server.history), True, False
                while news:
                    yield news.popleft()
                if told:
                    yield Synced(self._server.revision)
            if self._cut != stale or (not stale and seen < len(self._server.history)):
                continue  # something happened while the reader had the floor
            await self._server.changed()

    def _news(self, prefix: str, seen: int, *, begun: bool) -> deque[WatchEvent]:
        if not begun:
            return deque(Put(entry) for entry in self._under(prefix))
        return deque(
            change
            for change in self._server.history[seen:]
            if (change.entry.key if isinstance(change, Put) else change.key).startswith(prefix)
        )

    def _under(self, prefix: str) -> Sequence[Entry]:
        entries = self._server.entries
        return [entries[key] for key in sorted(entries) if key.startswith(prefix)]

    def _revision_of(self, key: str) -> int:
        entry = self._server.entries.get(key)
        return entry.revision if entry else 0

    async def _reach(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self._cut:
            await anyio.sleep(CALL_S)
            raise StoreUnavailable("the link to the store is cut")
        self._server.expire()
