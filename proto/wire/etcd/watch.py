"""Watches that survive: every change once and in order, across restarts and compactions.

The place to resume from is the last event's own revision plus one, never the header's: a watch
that is catching up reports the store's present revision there, thousands ahead of its events.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from proto.wire.errors import StoreError, StoreUnavailable
from proto.wire.etcd.connection import (
    Backoff,
    Connection,
    converse,
    honest_cancellation,
    translated,
)
from proto.wire.etcd.protocol import messages, stubs
from proto.wire.ports import Deleted, Entry, Put, Stale, Synced, WatchEvent

Entries = list[Entry]
Listing = tuple[Entries, int]
"""What is under a prefix, and the revision at which it was so."""
Lister = Callable[[], Awaitable[Listing]]

DELETE_EVENT = 1


class _Compacted(Exception):
    """The history that we wanted to resume from is gone."""


class Watch:
    """One watch of one prefix; `events` is its whole life."""

    def __init__(self, connection: Connection, prefix: str, range_end: bytes, lister: Lister):
        self._connection = connection
        self._prefix = prefix
        self._range_end = range_end
        self._list = lister
        self._known: dict[str, int] = {}
        self._revision = 0
        """Of the last event told; 0 before the first listing, and after a compaction."""

    async def events(self) -> AsyncGenerator[WatchEvent]:
        """Every change, for ever."""
        backoff, stale = Backoff(), False
        while True:
            try:
                entries, revision = await self._list()
                target = {entry.key: entry.revision for entry in entries}
                if not self._revision:
                    for event in self._difference(entries, revision):
                        yield event
                    self._revision = revision
                async with self._stream() as responses:
                    if synced := self._caught_up(target, revision):
                        stale = False
                        yield Synced(revision)
                    async for response in responses:
                        for event in self._read(response):
                            yield event
                        if not synced and (synced := self._caught_up(target, revision)):
                            stale = False
                            yield Synced(self._revision)
                        backoff.reset()
            except _Compacted:
                self._revision = 0
                continue
            except StoreError as error:
                if not stale:
                    yield Stale(str(error))
                stale = True
            await backoff.wait()

    def _caught_up(self, target: Mapping[str, int], revision: int) -> bool:
        """Everything that the store held when we (re)connected has been told."""
        return self._revision >= revision or self._known == target

    def _difference(self, entries: list[Entry], revision: int) -> list[WatchEvent]:
        """What a listing says that had not been told before, as ordinary events."""
        listed = {entry.key: entry for entry in entries}
        gone = [Deleted(key, revision) for key in self._known if key not in listed]
        new = [Put(entry) for entry in entries if self._known.get(entry.key) != entry.revision]
        self._known = {entry.key: entry.revision for entry in entries}
        return [*gone, *new]

    def _read(self, response: Any) -> list[WatchEvent]:
        if response.compact_revision:
            raise _Compacted
        if response.canceled:
            raise StoreUnavailable("etcd ended the watch")
        told: list[WatchEvent] = []
        for event in response.events:
            key = event.kv.key.decode()
            self._revision = event.kv.mod_revision
            if event.type == DELETE_EVENT:
                self._known.pop(key, None)
                told.append(Deleted(key, event.kv.mod_revision))
            else:
                self._known[key] = event.kv.mod_revision
                told.append(Put(as_entry(event.kv)))
        return told

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[AsyncIterator[Any]]:
        """An open watch; entered once the server has confirmed it. Raises `StoreError`."""
        connection = self._connection
        channel = connection.channel()
        create = messages.WatchCreateRequest(
            key=self._prefix.encode(),
            range_end=self._range_end,
            start_revision=self._revision + 1,
        )
        call = None
        try:
            channel, headers = await connection.ready()
            # Without wait_for_ready a broken stream would be opened again in a hot loop.
            call = stubs.WatchStub(channel).Watch(metadata=headers, wait_for_ready=True)
            first = await converse(
                call,
                messages.WatchRequest(create_request=create),
                within_s=connection.settings.attempt_s,
            )
            yield _responses(call, first)
        except grpc.aio.AioRpcError as error:
            if not connection.forget_token(error):
                await connection.abandon(channel)
            raise translated(error) from error
        except StoreUnavailable:
            await connection.abandon(channel)
            raise
        finally:
            if call is not None:
                call.cancel()


async def _responses(call: Any, first: Any) -> AsyncIterator[Any]:
    response = first
    while response is not grpc.aio.EOF:
        yield response
        async with honest_cancellation():
            response = await call.read()
    raise StoreUnavailable("etcd closed the watch")


def as_entry(kv: Any) -> Entry:
    """etcd's key-value as ours."""
    return Entry(kv.key.decode(), kv.value, kv.mod_revision, kv.lease)
