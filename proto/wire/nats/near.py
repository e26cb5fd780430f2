"""A bus for a process that asks itself: what it serves or hears, it reaches without the server.

    async with NearBus(settings) as bus: ...

What this process says reaches its own subscriptions at once, and in order, also while the server
is away; everybody else hears it as ever. What it asks of a group that one of its own endpoints
belongs to, that one answers, and nobody else hears of the question.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeVar

import anyio
import msgspec
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from proto.wire.desk import Answer, Desk
from proto.wire.errors import BusTimeout, RequestRefused
from proto.wire.inbox import Inbox
from proto.wire.nats import services
from proto.wire.nats.bus import NatsBus
from proto.wire.nats.client import TURN_MESSAGES
from proto.wire.nats.settings import NatsSettings
from proto.wire.patterns import matches
from proto.wire.ports import NO_HEADERS, Endpoint, Headers, Message, ServiceInfo

SUBJECTS_KNOWN = 4_096
"""Of which it is remembered who is near."""

T = TypeVar("T")


class NearBus(NatsBus):
    """The `Bus` port, as `NatsBus` has it, for one process that is several services."""

    def __init__(self, settings: NatsSettings) -> None:
        super().__init__(msgspec.structs.replace(settings, echo=False))
        self._inboxes = _Near[Inbox[Message]]()
        self._desks = _Near[Desk]()
        self._asked = 0

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        message = Message(subject, data, headers)
        self._say(message)
        desks = self._desks.concerned(subject)
        for desk in desks:
            desk.take(message, _Slip())
        if not _is_ours(desks):
            await super().publish(subject, data, headers=headers)

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue_messages: int = 65_536
    ) -> AsyncIterator[Inbox[Message]]:
        async with super().subscribe(subject, queue_messages=queue_messages) as inbox:
            with self._inboxes.there((subject, inbox)):
                yield inbox

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        desks = self._desks.concerned(subject)
        if not desks:
            self._say(Message(subject, data, headers))
            return await super().request(subject, data, timeout_s=timeout_s, headers=headers)
        if not _is_ours(desks):
            await super().publish(subject, data, headers=headers)
        return await self._ask(desks[0], Message(subject, data, headers), timeout_s)

    @asynccontextmanager
    async def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[None]:
        async with services.serve(self._connection, service, endpoints) as desks:
            with self._desks.there(*((desk.endpoint.subject, desk) for desk in desks)):
                yield

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        sequence = await super().append(subject, data, timeout_s=timeout_s, headers=headers)
        self._say(Message(subject, data, headers))
        return sequence

    def _say(self, message: Message) -> None:
        for inbox in self._inboxes.concerned(message.subject):
            inbox.offer(message)

    async def _ask(self, desk: Desk, message: Message, timeout_s: float) -> Message:
        self._say(message)
        self._asked += 1
        if self._asked % TURN_MESSAGES:
            await checkpoint_if_cancelled()  # what is answered at once need not wait for a turn
        else:
            await checkpoint()
        slip = _Slip()
        desk.take(message, slip)
        with anyio.move_on_after(timeout_s):
            return Message("", await slip.answer())
        raise BusTimeout(f"no answer on {message.subject} within {timeout_s:g} s")


def _is_ours(desks: Sequence[Desk]) -> bool:
    """Whether it was meant for one of a group, and one of us is that."""
    return any(desk.endpoint.group is not None for desk in desks)


class _Near(Generic[T]):
    """What this process has on which subjects."""

    def __init__(self) -> None:
        self._there: list[tuple[str, T]] = []
        self._known: dict[str, Sequence[T]] = {}

    def concerned(self, subject: str) -> Sequence[T]:
        """By what is said on a subject."""
        known = self._known.get(subject)
        if known is None:
            if len(self._known) >= SUBJECTS_KNOWN:
                self._known.clear()
            known = [what for pattern, what in self._there if matches(pattern, subject)]
            self._known[subject] = known
        return known

    @contextmanager
    def there(self, *places: tuple[str, T]) -> Iterator[None]:
        """Patterns, and what is there while this is open."""
        self._there.extend(places)
        self._known.clear()
        try:
            yield
        finally:
            for place in places:
                self._there.remove(place)
            self._known.clear()


class _Slip:
    """Where an answer is written: the `Way` back to somebody in this process."""

    def __init__(self) -> None:
        self._answer: Answer | None = None
        self._written: anyio.Event | None = None

    async def answer(self) -> bytes:
        """Raises `RequestRefused`."""
        if self._answer is None:
            self._written = anyio.Event()
            await self._written.wait()
        assert self._answer is not None
        if isinstance(self._answer, RequestRefused):
            raise self._answer
        return self._answer

    def is_free(self) -> bool:
        return True

    def post(self, answer: Answer) -> None:
        if not isinstance(answer, bytes | RequestRefused):
            raise TypeError(f"an answer is bytes, not {type(answer).__name__}")
        self._answer = answer
        if self._written is not None:
            self._written.set()

    async def send(self, answer: Answer) -> None:
        self.post(answer)
