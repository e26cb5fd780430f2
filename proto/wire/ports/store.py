"""What is: keys with leases and watches (etcd)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """A key as it is. `revision` is the store's revision at which it was last written; `lease`
    is the id of the lease it lives under, 0 for none."""

    key: str
    value: bytes
    revision: int
    lease: int = 0


class Lease(msgspec.Struct, frozen=True):
    """A promise to keep alive: keys under it vanish `ttl_s` after the last renewal."""

    id: int
    ttl_s: int


class Put(msgspec.Struct, frozen=True):
    """A key was written, or was there when the watch began."""

    entry: Entry


class Deleted(msgspec.Struct, frozen=True):
    """A key is gone: deleted, or its lease ended."""

    key: str
    revision: int


class Synced(msgspec.Struct, frozen=True):
    """What came before this is the whole truth as of `revision`; the watch is live."""

    revision: int


class Stale(msgspec.Struct, frozen=True):
    """The store is out of reach; what was seen so far may be old until the next `Synced`."""

    reason: str


WatchEvent = Put | Deleted | Synced | Stale


class Store(Protocol):
    """A consistent key-value store with leases and watches; keys are text paths.

    Reads are linearizable. Every call has a deadline inside the carrier and raises
    `StoreUnavailable` after it. An unguarded write that is retried by the carrier may be applied
    twice, with the same value; guarded writes (`expected_revision`) are never retried blindly.
    """

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Every entry whose key starts with `prefix`, ordered by key."""

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        """Write; returns the new revision. Raises `LeaseLost` when the lease is not there."""

    async def put_if(
        self, key: str, value: bytes, *, expected_revision: int, lease: Lease | None = None
    ) -> int | None:
        """Write only if the key was last written at `expected_revision` (0: does not exist).
        Returns the new revision, None if somebody else was first."""

    async def delete(self, key: str, *, expected_revision: int | None = None) -> bool:
        """Delete; False if it was not there, or was not at `expected_revision`."""

    async def grant(self, ttl_s: int) -> Lease: ...

    async def keep_alive(self, lease: Lease) -> None:
        """Renew until cancelled; raises `LeaseLost` once the lease is certainly gone."""

    async def revoke(self, lease: Lease) -> None:
        """End a lease and delete what is under it; fine if it has ended already."""

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """The state under `prefix`, then every change, each once and in order.

        Begins with a `Put` for each entry and a `Synced`. When the store goes away a `Stale`
        comes, and the carrier reconnects for ever; then the changes missed (after a compaction:
        the difference, as ordinary `Put` and `Deleted`) and another `Synced`.
        """
