"""The `Bus` port on NATS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType

from proto.wire.desk import raise_if_refused
from proto.wire.inbox import Inbox
from proto.wire.nats import consumer, services, streams
from proto.wire.nats.buckets import NatsBucket, open_bucket
from proto.wire.nats.connection import Connection, Listener
from proto.wire.nats.settings import NatsSettings
from proto.wire.ports import (
    NO_HEADERS,
    BucketSpec,
    Delivery,
    Endpoint,
    Headers,
    Message,
    ServiceInfo,
    StreamSpec,
)


class NatsBus:
    """A bus to be used inside `async with`; entering raises `BusUnavailable` after `connect_s`.

    Runs on asyncio, with or without uvloop. Leaving sends what waits to be sent.
    """

    def __init__(self, settings: NatsSettings) -> None:
        self._connection = Connection(settings)

    async def __aenter__(self) -> NatsBus:
        await self._connection.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._connection.close()

    @property
    def connected(self) -> bool:
        return self._connection.connected

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        await self._connection.publish(subject, data, headers=headers)

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue_messages: int = 65_536
    ) -> AsyncIterator[Inbox[Message]]:
        inbox: Inbox[Message] = Inbox(subject, queue_messages)

        def take(message: Message, reply: str) -> None:
            inbox.offer(message)

        try:
            async with self._connection.listen(Listener(subject, take)):
                yield inbox
        finally:
            inbox.close()

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        answer = await self._connection.ask(subject, data, timeout_s, headers)
        raise_if_refused(answer)
        return answer

    @asynccontextmanager
    async def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[None]:
        async with services.serve(self._connection, service, endpoints):
            yield

    async def ensure_stream(self, spec: StreamSpec, *, timeout_s: float = 10.0) -> None:
        await streams.ensure_stream(self._connection, spec, timeout_s)

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        return await streams.append(self._connection, subject, data, timeout_s, headers)

    def consume(
        self, stream: str, *, durable: str | None = None, queue_messages: int = 256
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        return consumer.consume(self._connection, stream, durable, queue_messages)

    async def bucket(self, spec: BucketSpec, *, timeout_s: float = 10.0) -> NatsBucket:
        return await open_bucket(self._connection, spec, timeout_s)
