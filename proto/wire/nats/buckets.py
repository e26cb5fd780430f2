"""The `Bucket` port on JetStream's key-value buckets (ADR-8): `nats kv ls` shows them.

A bucket is a stream with one message a subject. nats-py's own client reads through whatever copy
of the stream answers first and has no deadline of ours; the few words it takes are said here. All
reads go to the stream's leader, so that they see every write. What was deleted is purged, lest
markers of tickets that came and went pile up until they are old. A stream that is full refuses
what is new: by default it would drop what is oldest, which somebody may still need.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import msgspec
from nats.js.api import DiscardPolicy, Header, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from proto.wire.errors import BucketFull, BusError, BusTimeout, NoResponder, StreamMissing
from proto.wire.nats.connection import Connection
from proto.wire.nats.consumer import consume
from proto.wire.nats.streams import NOT_NOW, Stored, Trouble, jetstream_errors
from proto.wire.ports import NO_HEADERS, BucketSpec, Cell, Delivery, Headers

WRONG_LAST_SEQUENCE = 10071
NO_MESSAGE = 10037
NOT_STORED, NO_ROOM = 10077, "maximum bytes exceeded"
OPERATION = "KV-Operation"
DELETED = {OPERATION: "DEL"}
QUEUE_CELLS = 256
READERS = 64
"""Keys that are read at once when all are: each takes a round trip."""


class _Kept(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    data: bytes = b""
    hdrs: bytes = b""


class _Purged(msgspec.Struct, frozen=True):
    purged: int = 0
    error: Trouble | None = None


class _Found(msgspec.Struct, frozen=True):
    message: _Kept | None = None
    error: Trouble | None = None


class _State(msgspec.Struct, frozen=True):
    subjects: dict[str, int] | None = None


class _Info(msgspec.Struct, frozen=True):
    state: _State = _State()
    total: int = 0
    error: Trouble | None = None


async def open_bucket(connection: Connection, spec: BucketSpec, timeout_s: float) -> NatsBucket:
    """See the port."""
    config = StreamConfig(
        name=f"KV_{spec.name}",
        subjects=[f"$KV.{spec.name}.>"],
        storage=StorageType.FILE,
        max_age=spec.max_age_s,
        max_bytes=spec.max_bytes,
        discard=DiscardPolicy.NEW,
        num_replicas=connection.settings.replicas,
        max_msgs_per_subject=1,
        allow_rollup_hdrs=True,
        deny_delete=True,
    )
    left_s = await connection.until_up(timeout_s)
    manager = connection.client.jsm(timeout=left_s)
    with jetstream_errors(f"bucket {spec.name}"), anyio.fail_after(left_s):
        try:
            await manager.update_stream(config)
        except NotFoundError:
            await manager.add_stream(config)
    return NatsBucket(connection, spec.name)


class NatsBucket:
    """A bucket of the server."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._stream = f"KV_{name}"
        self._prefix = f"$KV.{name}."

    async def get(self, key: str, *, timeout_s: float = 5.0) -> Cell | None:
        last = await self._last(key, timeout_s)
        if last is None or _is_marker(last):
            return None
        return Cell(key, last.data, last.seq)

    async def create(self, key: str, value: bytes, *, timeout_s: float = 5.0) -> int | None:
        return await self._write(key, value, 0, timeout_s)

    async def update(
        self, key: str, value: bytes, *, revision: int, timeout_s: float = 5.0
    ) -> int | None:
        return await self._write(key, value, revision, timeout_s)

    async def delete(self, key: str, *, revision: int, timeout_s: float = 5.0) -> bool:
        try:
            deleted = await self._write(key, b"", revision, timeout_s, DELETED)
        except BucketFull:  # not even what says so has room
            return await self._delete_from_full(key, revision, timeout_s)
        if deleted is None:
            return False
        await self._purge(key, deleted, timeout_s)
        return True

    async def _delete_from_full(self, key: str, revision: int, timeout_s: float) -> bool:
        """Make room first, and then tell who watches. What was written since has a higher number
        and stays."""
        if not await self._purge(key, revision, timeout_s):
            return False
        with suppress(BucketFull):
            deleted = await self._write(key, b"", 0, timeout_s, DELETED)
            if deleted is not None:
                await self._purge(key, deleted, timeout_s)
        return True

    async def list(self, *, timeout_s: float = 10.0) -> Sequence[Cell]:
        cells: list[Cell] = []
        failures: list[BusError] = []

        async def read(keys: Iterator[str]) -> None:
            try:
                while key := next(keys, None):
                    if cell := await self.get(key, timeout_s=timeout_s):
                        cells.append(cell)
            except BusError as error:
                failures.append(error)
                readers.cancel_scope.cancel()

        with anyio.move_on_after(timeout_s):
            keys = iter(await self._keys(timeout_s))
            async with anyio.create_task_group() as readers:
                for _ in range(READERS):
                    readers.start_soon(read, keys)
            if failures:
                raise failures[0]
            return cells
        raise BusTimeout(f"{self._stream} was not read within {timeout_s:g} s")

    async def _keys(self, timeout_s: float) -> Sequence[str]:
        """All that there are, of which the server tells so many at a time."""
        keys: dict[str, None] = {}
        told = 0
        while True:
            ask = msgspec.json.encode({"subjects_filter": self._prefix + ">", "offset": told})
            answer = await self._ask(f"$JS.API.STREAM.INFO.{self._stream}", ask, timeout_s)
            info = msgspec.json.decode(answer, type=_Info)
            if info.error is not None:
                raise self._refusal(info.error)
            page = info.state.subjects or {}
            keys |= dict.fromkeys(subject.removeprefix(self._prefix) for subject in page)
            told += len(page)
            if told >= info.total or not page:
                return [*keys]

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Cell]]:
        async with consume(self._connection, self._stream, None, QUEUE_CELLS) as deliveries:
            yield _Cells(deliveries, self._prefix)

    async def _write(
        self,
        key: str,
        value: bytes,
        revision: int,
        timeout_s: float,
        headers: Headers = NO_HEADERS,
    ) -> int | None:
        guarded = {**headers, Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        answer = await self._ask(self._prefix + key, value, timeout_s, guarded)
        stored = msgspec.json.decode(answer, type=Stored)
        if stored.error is None:
            return stored.seq
        if stored.error.err_code == NOT_STORED and NO_ROOM in stored.error.description:
            raise BucketFull(f"{self._stream} is full: {stored.error.description}")
        if stored.error.err_code != WRONG_LAST_SEQUENCE:
            raise self._refusal(stored.error)
        if revision == 0:
            marker = await self._last(key, timeout_s)
            if marker is not None and _is_marker(marker):  # not purged yet
                return await self._write(key, value, marker.seq, timeout_s, headers)
        return None

    async def _purge(self, key: str, revision: int, timeout_s: float) -> int:
        """Drop what the key holds up to that revision; returns how much there was."""
        ask = msgspec.json.encode({"filter": self._prefix + key, "seq": revision + 1})
        answer = await self._ask(f"$JS.API.STREAM.PURGE.{self._stream}", ask, timeout_s)
        done = msgspec.json.decode(answer, type=_Purged)
        if done.error is not None:
            raise self._refusal(done.error)
        return done.purged

    async def _last(self, key: str, timeout_s: float) -> _Kept | None:
        ask = msgspec.json.encode({"last_by_subj": self._prefix + key})
        answer = await self._ask(f"$JS.API.STREAM.MSG.GET.{self._stream}", ask, timeout_s)
        found = msgspec.json.decode(answer, type=_Found)
        if found.error is not None and found.error.err_code != NO_MESSAGE:
            raise self._refusal(found.error)
        return found.message

    def _refusal(self, trouble: Trouble) -> BusError:
        """In the words of the port: what passes is worth another try."""
        said = f"{self._stream}: {trouble.description}"
        return BusTimeout(said) if trouble.code == NOT_NOW else StreamMissing(said)

    async def _ask(
        self, subject: str, data: bytes, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> bytes:
        try:
            return (await self._connection.ask(subject, data, timeout_s, headers)).data
        except NoResponder as error:
            raise BusTimeout(f"nobody answers for {self._stream} now") from error


def _is_marker(message: _Kept) -> bool:
    return OPERATION.encode() in message.hdrs


class _Cells:
    """A watcher's messages, as cells."""

    def __init__(self, deliveries: AsyncIterator[Delivery], prefix: str) -> None:
        self._deliveries = deliveries
        self._prefix = prefix

    def __aiter__(self) -> _Cells:
        return self

    async def __anext__(self) -> Cell:
        delivery = await anext(self._deliveries)
        await delivery.ack()
        message = delivery.message
        value = None if OPERATION in message.headers else message.data
        return Cell(message.subject.removeprefix(self._prefix), value, delivery.sequence)
