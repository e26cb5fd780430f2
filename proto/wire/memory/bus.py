"""The bus within one process: the promises of NATS, and faults on demand.

`MemoryHub` is the server and `hub.connect(name)` a client, which can be `cut()` off and `mend()`ed.
Anyio only, so a whole cluster runs in virtual time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from proto.wire.desk import Answer, Desk, open_desks, raise_if_refused, refusal_headers
from proto.wire.errors import (
    BusTimeout,
    BusUnavailable,
    NoResponder,
    RequestRefused,
    StreamMissing,
)
from proto.wire.inbox import Inbox
from proto.wire.memory.buckets import MemoryBucket
from proto.wire.memory.exchange import Exchange, Listener, Parcel
from proto.wire.memory.faults import Fault, faultless
from proto.wire.memory.reader import StreamReader
from proto.wire.patterns import check_pattern, check_subject
from proto.wire.ports import (
    NO_HEADERS,
    BucketSpec,
    Delivery,
    Endpoint,
    Headers,
    Message,
    ServiceInfo,
    StreamSpec,
    Subscription,
)

CALL_S = 5.0
"""How long subscribing waits for a connection that is cut."""
APPEND_S = 1.0
"""For one attempt to store; the next carries the same id."""
OUTGOING_MESSAGES = 10_000


class MemoryHub:
    """The server. Entered as a context it can also delay messages; the rest works without.

    `ack_wait_s` is when an unacknowledged message of a stream comes again.
    """

    def __init__(self, fault: Fault = faultless, *, ack_wait_s: float = 30.0) -> None:
        self._exchange = Exchange(fault, ack_wait_s)
        self._tasks: TaskGroup | None = None

    def connect(self, name: str, *, outgoing_messages: int = OUTGOING_MESSAGES) -> MemoryBus:
        """A client. `name` is what faults are decided by; `outgoing_messages` may wait while it
        is cut off."""
        return MemoryBus(self._exchange, name, outgoing_messages)

    async def __aenter__(self) -> MemoryHub:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        await self._tasks.start(self._exchange.run)
        return self

    async def __aexit__(self, *failure: object) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)


class MemoryBus:
    """One client of a hub: the `Bus` port."""

    def __init__(self, exchange: Exchange, name: str, outgoing_messages: int) -> None:
        self.name = name
        self._exchange = exchange
        self._outgoing_messages = outgoing_messages
        self._outgoing: deque[Callable[[], object]] = deque()
        self._up = anyio.Event()
        self._up.set()
        self._numbers = count()

    @property
    def connected(self) -> bool:
        return self._up.is_set()

    def cut(self) -> None:
        """Lose the connection: nothing comes in, what is published waits."""
        if self.connected:
            self._up = anyio.Event()

    def mend(self) -> None:
        """Connect again; what waited is sent."""
        self._up.set()
        while self._outgoing:
            self._outgoing.popleft()()
        self._exchange.stir()

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        await checkpoint()
        self._post(Message(check_subject(subject), data, headers))

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue_messages: int = 65_536
    ) -> AsyncIterator[Subscription]:
        inbox: Inbox[Message] = Inbox(subject, queue_messages)

        def take(parcel: Parcel) -> None:
            inbox.offer(parcel.message)

        try:
            async with self._listening(Listener(self, check_pattern(subject), take)):
                yield inbox
        finally:
            inbox.close()

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        message = Message(check_subject(subject), data, headers)
        left_s = await self.until_up(timeout_s)
        answers: list[Message] = []
        answered = anyio.Event()

        def take(parcel: Parcel) -> None:
            answers.append(parcel.message)
            answered.set()

        inbox = f"_INBOX.{self.name}.{next(self._numbers)}"
        number = self._exchange.listen(Listener(self, inbox, take))
        try:
            if not self._exchange.publish(self, Parcel(message, inbox)):
                raise NoResponder(f"nobody serves {subject} now")
            with anyio.move_on_after(left_s):
                await answered.wait()
        finally:
            self._exchange.leave(number)
        if not answers:
            raise BusTimeout(f"no answer on {subject} within {timeout_s:g} s")
        raise_if_refused(answers[0])
        return answers[0]

    @asynccontextmanager
    async def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[None]:
        async with (
            open_desks(service, endpoints) as desks,
            self._listening(*(self._desk_listener(desk) for desk in desks)),
        ):
            yield

    async def ensure_stream(self, spec: StreamSpec, *, timeout_s: float = 10.0) -> None:
        await self.until_up(timeout_s)
        self._exchange.ensure_stream(spec)

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        message = Message(check_subject(subject), data, headers)
        sequences: list[int] = []
        stored = anyio.Event()

        def confirm(sequence: int) -> None:
            if self.connected:
                sequences.append(sequence)
                stored.set()

        parcel = Parcel(message, "", f"{self.name}.{next(self._numbers)}", confirm)
        until_s = anyio.current_time() + await self.until_up(timeout_s)
        while not sequences and anyio.current_time() < until_s:
            if not self._exchange.keeps(subject):
                raise StreamMissing(f"no stream keeps {subject}")
            with anyio.CancelScope(deadline=min(until_s, anyio.current_time() + APPEND_S)):
                await self._up.wait()
                self._exchange.publish(self, parcel)
                await stored.wait()
        if not sequences:
            raise BusTimeout(f"not known to be stored within {timeout_s:g} s: {subject}")
        return sequences[0]

    @asynccontextmanager
    async def consume(
        self, stream: str, *, durable: str | None = None, queue_messages: int = 256
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        await self.until_up(CALL_S)
        kept = self._exchange.stream(stream)
        if kept is None:
            raise StreamMissing(f"there is no stream {stream}")
        reader = StreamReader(
            self._exchange, self, kept, kept.consumer(durable), queue_messages, self._send
        )
        with reader:
            yield reader

    async def bucket(self, spec: BucketSpec, *, timeout_s: float = 10.0) -> MemoryBucket:
        await self.until_up(timeout_s)
        return MemoryBucket(self._exchange, self, self._exchange.bucket(spec))

    def _post(self, message: Message) -> None:
        self._send(partial(self._exchange.publish, self, Parcel(message)))

    def _send(self, action: Callable[[], object]) -> None:
        """Now, or once mended."""
        if self.connected:
            action()
        elif len(self._outgoing) < self._outgoing_messages:
            self._outgoing.append(action)
        else:
            raise BusUnavailable(f"{self.name} is cut off, and {len(self._outgoing)} messages wait")

    async def until_up(self, timeout_s: float) -> float:
        """Wait for the connection; returns the seconds left."""
        await checkpoint()
        until_s = anyio.current_time() + timeout_s
        with anyio.move_on_after(timeout_s):
            await self._up.wait()
            return max(0.0, until_s - anyio.current_time())
        raise BusUnavailable(f"{self.name} was cut off for {timeout_s:g} s")

    @asynccontextmanager
    async def _listening(self, *listeners: Listener) -> AsyncIterator[None]:
        await self.until_up(CALL_S)
        numbers = [self._exchange.listen(listener) for listener in listeners]
        try:
            yield
        finally:
            for number in numbers:
                self._exchange.leave(number)

    def _desk_listener(self, desk: Desk) -> Listener:
        def take(parcel: Parcel) -> None:
            desk.take(parcel.message, _Way(self._post, parcel.reply))

        pattern = check_pattern(desk.endpoint.subject)
        return Listener(self, pattern, take, desk.endpoint.group)


class _Way(NamedTuple):
    """Back to who has asked, in the `inbox`; there is none if that was a plain message."""

    send_message: Callable[[Message], None]
    inbox: str

    def is_free(self) -> bool:
        return True

    def post(self, answer: Answer) -> None:
        if not self.inbox:
            return
        if isinstance(answer, RequestRefused):
            self.send_message(Message(self.inbox, b"", refusal_headers(answer)))
        else:
            self.send_message(Message(self.inbox, answer))

    async def send(self, answer: Answer) -> None:
        self.post(answer)
