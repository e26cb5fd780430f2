"""Reading a durable stream by pulling.

nats-py's own fetch holds back what has come until its batch is full or its time is over, and does
not notice that its request was lost with a server. Pulling takes few words, so they are said here:
one request for a batch at a time; the server's heartbeats tell that it still stands.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import anyio
import msgspec
from nats.aio.msg import Msg
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DeliverPolicy,
    Header,
    StatusCode,
)
from nats.js.errors import NotFoundError

from proto.wire.errors import BusUnavailable, StreamMissing
from proto.wire.nats.connection import Connection, Listener
from proto.wire.nats.streams import jetstream_errors
from proto.wire.ports import NO_HEADERS, Delivery, Message

log = logging.getLogger(__name__)

BATCH_MESSAGES = 256
EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
SILENCE_S = 2.5
"""Nothing for so long, and the request is taken for lost."""
EPHEMERAL_S = 300.0
"""A consumer without a durable name outlives its reader for so long, and so a server's restart."""
PAUSE_S = 0.5
NS = 1_000_000_000

RUN_OUT = (StatusCode.NO_MESSAGES, StatusCode.REQUEST_TIMEOUT)


class _Pull(msgspec.Struct, frozen=True):
    """A request for messages; times in nanoseconds."""

    batch: int
    expires: int = int(EXPIRES_S * NS)
    idle_heartbeat: int = int(HEARTBEAT_S * NS)


@asynccontextmanager
async def consume(
    connection: Connection, stream: str, durable: str | None, queue_messages: int
) -> AsyncIterator[AsyncIterator[Delivery]]:
    """See the port. What was read and not acknowledged comes again at once after leaving, and
    else when `ack_wait_s` is over."""
    await connection.until_up(connection.settings.call_s)
    reader = _Reader(connection, stream, durable, queue_messages)
    await reader.bind()
    connection.on_return.add(reader.renew)
    try:
        async with connection.listen(Listener(f"{reader.inbox}.*", reader.take), drain=True):
            yield reader
    finally:
        connection.on_return.discard(reader.renew)
        with anyio.move_on_after(connection.settings.call_s, shield=True):
            await reader.leave()


class _Reader:
    """A consumer of the server, and what it has sent us."""

    def __init__(
        self, connection: Connection, stream: str, durable: str | None, queue_messages: int
    ) -> None:
        self.inbox = connection.client.new_inbox()
        self._connection = connection
        self._stream = stream
        self._durable = durable
        self._consumer = durable or f"reader-{uuid4().hex}"
        self._queue_messages = queue_messages
        self._manager = connection.client.jsm(timeout=connection.settings.call_s)
        self._pulls = 0
        self._due = 0
        self._arrived: deque[Msg] = deque()
        self._life = anyio.Event()
        self._unacknowledged: dict[int, _Delivered] = {}
        self._last_sequence = 0

    async def bind(self) -> None:
        """Find the consumer or make it. Raises `StreamMissing`, `BusUnavailable`."""
        with jetstream_errors(f"stream {self._stream}"):
            config = await self._known() or await self._fresh()
            await self._manager.add_consumer(
                self._stream,
                replace(
                    config,
                    ack_wait=self._connection.settings.ack_wait_s,
                    max_ack_pending=self._queue_messages,
                ),
            )

    def take(self, message: Message, reply: str) -> None:
        """Everything that comes to our inbox; heartbeats only show that the request stands."""
        if message.headers.get(Header.STATUS) != StatusCode.CONTROL_MESSAGE:
            headers = dict(message.headers)
            client = self._connection.client
            self._arrived.append(Msg(client, message.subject, reply, message.data, headers))
        self._life.set()

    def renew(self) -> None:
        """The connection is a new one; what was asked for on the old one will not come."""
        self._due = 0
        self._life.set()

    async def leave(self) -> None:
        """Give back what was not acknowledged, or be forgotten altogether."""
        if not self._connection.connected:
            return
        if self._durable is None:
            try:
                with jetstream_errors(self._consumer):
                    await self._manager.delete_consumer(self._stream, self._consumer)
            except (StreamMissing, BusUnavailable) as error:
                log.debug("the server will forget by itself: %s", error)
            return
        unread = [raw for raw in self._arrived if not _status(raw)]
        for raw in [*(each.raw for each in self._unacknowledged.values()), *unread]:
            await self._connection.publish(raw.reply, Msg.Ack.Nak)

    def __aiter__(self) -> _Reader:
        return self

    async def __anext__(self) -> Delivery:
        while True:
            if self._due <= 0 and not self._arrived:
                await self._pull()
            raw = await self._next()
            if raw is None:
                self._due = 0
            elif _status(raw):
                await self._ended(raw)
            else:
                self._due -= 1
                return self._delivered(raw)

    async def _pull(self) -> None:
        await self._connection.until_up()
        self._pulls += 1
        self._due = min(self._queue_messages, BATCH_MESSAGES)
        await self._connection.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            msgspec.json.encode(_Pull(self._due)),
            reply=f"{self.inbox}.{self._pulls}",
        )

    async def _next(self) -> Msg | None:
        """The next of what came; None if the request is lost, or silence makes it look so."""
        while not self._arrived:
            if self._due <= 0:
                return None
            self._life = anyio.Event()
            with anyio.move_on_after(SILENCE_S) as waiting:
                await self._life.wait()
            if waiting.cancelled_caught:
                return None
        return self._arrived.popleft()

    async def _ended(self, raw: Msg) -> None:
        """A status ends the request that it answers."""
        if raw.subject != f"{self.inbox}.{self._pulls}":
            return
        self._due = 0
        if _status(raw) in RUN_OUT:
            return
        await anyio.sleep(PAUSE_S)  # the consumer is gone, or its server is about to go
        try:
            await self.bind()
        except (StreamMissing, BusUnavailable) as error:
            log.warning("still reading %s, but %s", self._stream, error)

    def _delivered(self, raw: Msg) -> Delivery:
        delivered = _Delivered(self, raw)
        self._last_sequence = max(self._last_sequence, delivered.sequence)
        self._unacknowledged[delivered.sequence] = delivered
        return delivered

    async def acknowledge(self, delivered: _Delivered) -> None:
        await self._connection.publish(delivered.raw.reply, Msg.Ack.Ack)
        self._unacknowledged.pop(delivered.sequence, None)

    async def _known(self) -> ConsumerConfig | None:
        try:
            info: ConsumerInfo = await self._manager.consumer_info(self._stream, self._consumer)
        except NotFoundError:
            return None
        return info.config

    async def _fresh(self) -> ConsumerConfig:
        """From the first message kept; after a loss from the first that we still need."""
        config = ConsumerConfig(
            name=self._consumer,
            durable_name=self._durable,
            ack_policy=AckPolicy.EXPLICIT,
            inactive_threshold=None if self._durable else EPHEMERAL_S,
            deliver_policy=DeliverPolicy.ALL,
        )
        needed = min(self._unacknowledged, default=self._last_sequence + 1)
        if needed > 1:
            state = (await self._manager.stream_info(self._stream)).state
            if needed <= state.last_seq + 1:  # or it is another stream by the same name
                config.deliver_policy = DeliverPolicy.BY_START_SEQUENCE
                config.opt_start_seq = needed
        return config


class _Delivered:
    """A `Delivery`."""

    def __init__(self, reader: _Reader, raw: Msg) -> None:
        self.raw = raw
        self.message = Message(raw.subject, raw.data, raw.headers or NO_HEADERS)
        self.sequence: int = raw.metadata.sequence.stream
        self._reader = reader

    async def ack(self) -> None:
        await self._reader.acknowledge(self)


def _status(raw: Msg) -> str | None:
    return raw.headers.get(Header.STATUS) if raw.headers else None
