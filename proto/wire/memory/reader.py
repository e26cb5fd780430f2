"""Reading a durable stream of the bus in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType

import anyio
from anyio.lowlevel import checkpoint

from proto.wire.memory.exchange import Client, Exchange
from proto.wire.memory.streams import Consumer, Kept, KeptStream
from proto.wire.ports import Delivery

Send = Callable[[Callable[[], object]], None]


class StreamReader:
    """The messages of a consumer, used as a context; leaving gives back what was not
    acknowledged."""

    def __init__(
        self,
        exchange: Exchange,
        client: Client,
        stream: KeptStream,
        consumer: Consumer,
        queue_messages: int,
        send: Send,
    ) -> None:
        self._exchange = exchange
        self._client = client
        self._stream = stream
        self._consumer = consumer
        self._queue_messages = queue_messages
        self._send = send
        self._arrived: deque[Kept] = deque()
        self._taken: set[int] = set()
        self._changed = anyio.Event()

    def __enter__(self) -> StreamReader:
        self._watch = self._exchange.watch(self._look_again)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exchange.unwatch(self._watch)
        self._consumer.give_back(self._taken)
        self._exchange.stir()

    def __aiter__(self) -> StreamReader:
        return self

    async def __anext__(self) -> Delivery:
        await checkpoint()
        while not self._arrived:
            self._changed = anyio.Event()
            if not self._take_one():
                with anyio.CancelScope(deadline=self._consumer.due_s):
                    await self._changed.wait()
        return _Delivered(self, self._arrived.popleft())

    def acknowledge(self, sequence: int) -> None:
        self._taken.discard(sequence)
        self._send(partial(self._consumer.acknowledge, sequence))

    def _take_one(self) -> bool:
        """Send one message on its way from the stream to us; False if there is none now."""
        if not self._client.connected:
            return False
        kept = self._consumer.take(self._queue_messages, anyio.current_time())
        if kept is None:
            return False
        self._taken.add(kept.sequence)
        arrive = partial(self._arrive, kept)
        self._exchange.carry(
            self._stream.spec.name, kept.message.subject, self._client.name, arrive
        )
        return True

    def _arrive(self, kept: Kept) -> None:
        if self._client.connected:
            self._arrived.append(kept)
            self._look_again()

    def _look_again(self) -> None:
        self._changed.set()


class _Delivered:
    """A `Delivery`."""

    def __init__(self, reader: StreamReader, kept: Kept) -> None:
        self.message = kept.message
        self.sequence = kept.sequence
        self._reader = reader

    async def ack(self) -> None:
        await checkpoint()
        self._reader.acknowledge(self.sequence)
