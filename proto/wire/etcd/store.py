"""The `Store` port on etcd."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import grpc
import grpc.aio

from proto.wire.errors import LeaseLost, StoreUnavailable
from proto.wire.etcd.connection import Backoff, Connection, EtcdSettings, converse
from proto.wire.etcd.protocol import messages, stubs
from proto.wire.etcd.watch import Entries, Listing, Watch, as_entry
from proto.wire.ports import Entry, Lease, WatchEvent

PAGE_ENTRIES = 1_000


class EtcdStore:
    """An etcd cluster; an async context manager."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._connection = Connection(settings)

    async def __aenter__(self) -> EtcdStore:
        return self

    async def __aexit__(self, *details: object) -> None:
        await self._connection.close()

    async def get(self, key: str) -> Entry | None:
        reply = await self._range(messages.RangeRequest(key=key.encode()))
        return as_entry(reply.kvs[0]) if reply.kvs else None

    async def list(self, prefix: str) -> Sequence[Entry]:
        entries, _ = await self._list(prefix)
        return entries

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        reply = await self._kv("Put", _put(key, value, lease))
        return int(reply.header.revision)

    async def put_if(
        self, key: str, value: bytes, *, expected_revision: int, lease: Lease | None = None
    ) -> int | None:
        put = messages.RequestOp(request_put=_put(key, value, lease))
        reply = await self._txn(key, expected_revision, put)
        return int(reply.header.revision) if reply.succeeded else None

    async def delete(self, key: str, *, expected_revision: int | None = None) -> bool:
        request = messages.DeleteRangeRequest(key=key.encode())
        if expected_revision is None:
            reply = await self._kv("DeleteRange", request)
            return bool(reply.deleted)
        operation = messages.RequestOp(request_delete_range=request)
        reply = await self._txn(key, expected_revision, operation)
        return bool(reply.succeeded and reply.responses[0].response_delete_range.deleted)

    async def grant(self, ttl_s: int) -> Lease:
        reply = await self._connection.call(
            stubs.LeaseStub, "LeaseGrant", messages.LeaseGrantRequest(TTL=ttl_s)
        )
        return Lease(reply.ID, ttl_s)

    async def revoke(self, lease: Lease) -> None:
        try:
            await self._connection.call(
                stubs.LeaseStub, "LeaseRevoke", messages.LeaseRevokeRequest(ID=lease.id)
            )
        except LeaseLost:
            return  # it has ended already

    async def keep_alive(self, lease: Lease) -> None:
        """A beat every third of the time to live, on one stream as long as it holds.

        While etcd is away the lease cannot end by itself, and when it comes back a new leader
        extends every lease once; so only the server's own word, a TTL of 0, means lost.
        """
        backoff = Backoff()
        while True:
            channel = self._connection.channel()
            call = None
            try:
                channel, headers = await self._connection.ready()
                call = stubs.LeaseStub(channel).LeaseKeepAlive(metadata=headers)
                while True:
                    await self._beat(call, lease)
                    backoff.reset()
                    await anyio.sleep(lease.ttl_s / 3)
            except grpc.aio.AioRpcError as error:
                if not self._connection.forget_token(error):
                    await self._connection.abandon(channel)
            except StoreUnavailable:
                await self._connection.abandon(channel)
            finally:
                if call is not None:
                    call.cancel()
            await backoff.wait()

    @asynccontextmanager
    async def watch(self, prefix: str) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        watch = Watch(self._connection, prefix, _prefix_end(prefix), lambda: self._list(prefix))
        async with aclosing(watch.events()) as events:
            yield events

    async def _beat(self, call: Any, lease: Lease) -> None:
        reply = await converse(
            call,
            messages.LeaseKeepAliveRequest(ID=lease.id),
            within_s=self._connection.settings.attempt_s,
        )
        if reply.TTL <= 0:
            raise LeaseLost(f"lease {lease.id:x} has ended")

    async def _range(self, request: Any) -> Any:
        return await self._kv("Range", request)

    async def _kv(self, method: str, request: Any) -> Any:
        return await self._connection.call(stubs.KVStub, method, request)

    async def _txn(self, key: str, expected_revision: int, operation: Any) -> Any:
        compare = messages.Compare(
            result=messages.Compare.EQUAL,
            target=messages.Compare.MOD,
            key=key.encode(),
            mod_revision=expected_revision,
        )
        request = messages.TxnRequest(compare=[compare], success=[operation])
        return await self._connection.call(stubs.KVStub, "Txn", request, repeat=False)

    async def _list(self, prefix: str) -> Listing:
        """Everything under a prefix as of one revision, in pages."""
        entries: Entries = []
        key, end, revision = prefix.encode(), _prefix_end(prefix), 0
        while True:
            reply = await self._range(
                messages.RangeRequest(key=key, range_end=end, limit=PAGE_ENTRIES, revision=revision)
            )
            entries += map(as_entry, reply.kvs)
            revision = revision or int(reply.header.revision)
            if not reply.more:
                return entries, revision
            key = reply.kvs[-1].key + b"\0"


def _put(key: str, value: bytes, lease: Lease | None) -> Any:
    return messages.PutRequest(key=key.encode(), value=value, lease=lease.id if lease else 0)


def _prefix_end(prefix: str) -> bytes:
    """The first key after all keys with the prefix; `\\0` is etcd's word for the end of keys."""
    stem = prefix.encode().rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"
