"""The bus within one process: the promises of NATS, and faults on demand.

`MemoryHub` is the server and `hub.connect(name)` a client. A client can be `cut()` off and
`mend()`ed, and the hub's `fault` decides message by message what is delivered, lost, doubled or
late. Anyio only, so a whole cluster runs in virtual time.
"""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from proto.wire.errors import (
    BusTimeout,
    BusUnavailable,
    NoResponder,
    RequestRefused,
    StreamMissing,
)
from proto.wire.ports import (
    NO_HEADERS,
    Delivery,
    Endpoint,
    Headers,
    Message,
    ServiceInfo,
    StreamSpec,
    Subscription,
)

log = logging.getLogger(__name__)

OUTGOING_MESSAGES_MAX = 10_000
REDELIVER_S = 30.0

Fault = Callable[[str, str, str], Sequence[float]]
"""`fault(sender, subject, receiver)` gives the delay in seconds of each copy that arrives: `(0,)`
delivers as usual, `()` loses the message, `(0, 0)` doubles it, `(1.5,)` makes it late."""


def faithful(sender: str, subject: str, receiver: str) -> Sequence[float]:
    """No fault: one copy, at once."""
    del sender, subject, receiver
    return (0.0,)


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject falls under a pattern: `*` is one token, a final `>` one or more."""
    wanted, given = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(given) >= len(wanted) and all(
            w in ("*", g) for w, g in zip(wanted[:-1], given, strict=False)
        )
    return len(wanted) == len(given) and all(
        w in ("*", g) for w, g in zip(wanted, given, strict=True)
    )


class _Inbox:
    """Bounded; drops the newest when full."""

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._limit = limit
        self._waiting: deque[Message] = deque()
        self._arrived = anyio.Event()

    def put(self, message: Message) -> None:
        if len(self._waiting) >= self._limit:
            self.dropped += 1
            return
        self._waiting.append(message)
        self._arrived.set()

    async def __aiter__(self) -> AsyncIterator[Message]:
        while True:
            while self._waiting:
                await anyio.lowlevel.checkpoint()
                yield self._waiting.popleft()
            self._arrived = anyio.Event()
            await self._arrived.wait()


@dataclass(eq=False)
class _Listener:
    """A subscription or an endpoint, as the hub sees it."""

    owner: MemoryBus
    pattern: str
    group: str | None
    take: Callable[[Message, _Reply | None], None]


@dataclass(eq=False)
class _Reply:
    """Where an answer goes; the first one counts."""

    asker: MemoryBus
    answered: anyio.Event = field(default_factory=anyio.Event)
    answer: bytes | RequestRefused | None = None

    def give(self, answer: bytes | RequestRefused) -> None:
        if self.answer is None:
            self.answer = answer
            self.answered.set()


@dataclass
class _Stream:
    spec: StreamSpec
    messages: list[Message] = field(default_factory=list)
    acked: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    grown: anyio.Event = field(default_factory=anyio.Event)


class MemoryHub:
    """The server: run it as a context, connect clients to it."""

    def __init__(self, fault: Fault = faithful) -> None:
        self.fault = fault
        self.listeners: list[_Listener] = []
        self.streams: dict[str, _Stream] = {}
        self._turns: defaultdict[tuple[str, str], count[int]] = defaultdict(count)
        self._late: TaskGroup | None = None

    async def __aenter__(self) -> MemoryHub:
        self._late = anyio.create_task_group()
        await self._late.__aenter__()
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._late is not None
        self._late.cancel_scope.cancel()
        await self._late.__aexit__(None, None, None)

    def connect(self, name: str) -> MemoryBus:
        """A client; `name` is what `fault` is told."""
        return MemoryBus(self, name)

    def deliver(self, sender: MemoryBus, message: Message, reply: _Reply | None = None) -> int:
        """Hand a message to everybody concerned; returns how many there are."""
        chosen = self._concerned(message.subject)
        for listener in chosen:
            for delay_s in self.fault(sender.name, message.subject, listener.owner.name):
                self._after(delay_s, listener, message, reply)
        for stream in self.streams.values():
            if any(matches(p, message.subject) for p in stream.spec.subjects):
                stream.messages.append(message)
                stream.grown.set()
                stream.grown = anyio.Event()
        return len(chosen)

    def _concerned(self, subject: str) -> list[_Listener]:
        """Every listener without a group, and one of each group, in turn."""
        reachable = [
            each
            for each in self.listeners
            if each.owner.connected and matches(each.pattern, subject)
        ]
        groups: dict[str, list[_Listener]] = {}
        for each in reachable:
            if each.group is not None:
                groups.setdefault(each.group, []).append(each)
        shared = [
            members[next(self._turns[(group, subject)]) % len(members)]
            for group, members in groups.items()
        ]
        return [each for each in reachable if each.group is None] + shared

    def _after(
        self, delay_s: float, listener: _Listener, message: Message, reply: _Reply | None
    ) -> None:
        if delay_s <= 0:
            listener.take(message, reply)
            return
        assert self._late is not None, "a hub that delays messages must be entered"
        self._late.start_soon(self._deliver_late, delay_s, listener, message, reply)

    async def _deliver_late(
        self, delay_s: float, listener: _Listener, message: Message, reply: _Reply | None
    ) -> None:
        await anyio.sleep(delay_s)
        if listener in self.listeners and listener.owner.connected:
            listener.take(message, reply)


class MemoryBus:
    """One client of a hub: the `Bus` port."""

    def __init__(self, hub: MemoryHub, name: str) -> None:
        self.name = name
        self._hub = hub
        self._cut = False
        self._outgoing: deque[Message] = deque()

    @property
    def connected(self) -> bool:
        return not self._cut

    def cut(self) -> None:
        """Lose the connection: nothing comes in, what is published waits."""
        self._cut = True

    def mend(self) -> None:
        """Connect again; what waited is sent."""
        self._cut = False
        while self._outgoing:
            self._hub.deliver(self, self._outgoing.popleft())

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        await anyio.lowlevel.checkpoint()
        message = Message(subject, data, headers)
        if not self._cut:
            self._hub.deliver(self, message)
        elif len(self._outgoing) < OUTGOING_MESSAGES_MAX:
            self._outgoing.append(message)
        else:
            raise BusUnavailable("not connected, and the outgoing buffer is full")

    @asynccontextmanager
    async def subscribe(
        self, subject: str, *, queue_messages: int = 65_536, group: str | None = None
    ) -> AsyncIterator[Subscription]:
        inbox = _Inbox(queue_messages)
        listener = _Listener(self, subject, group, lambda message, _: inbox.put(message))
        self._hub.listeners.append(listener)
        try:
            yield inbox
        finally:
            self._hub.listeners.remove(listener)

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        await anyio.lowlevel.checkpoint()
        reply = _Reply(self)
        if not self._cut and not self._hub.deliver(self, Message(subject, data, headers), reply):
            raise NoResponder(f"nobody serves {subject}")
        with anyio.move_on_after(timeout_s):
            await reply.answered.wait()
        if self._cut or reply.answer is None:
            raise BusTimeout(f"no answer on {subject} within {timeout_s:g} s")
        if isinstance(reply.answer, RequestRefused):
            raise RequestRefused(reply.answer.code, reply.answer.description)
        return Message(subject, reply.answer)

    @asynccontextmanager
    async def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AsyncIterator[None]:
        del service
        async with anyio.create_task_group() as tasks:
            listeners = [
                _Listener(self, endpoint.subject, endpoint.group, _Desk(self, endpoint, tasks).take)
                for endpoint in endpoints
            ]
            self._hub.listeners += listeners
            try:
                yield
            finally:
                for listener in listeners:
                    self._hub.listeners.remove(listener)

    async def ensure_stream(self, spec: StreamSpec, *, timeout_s: float = 10.0) -> None:
        await self._reachable(timeout_s)
        stream = self._hub.streams.setdefault(spec.name, _Stream(spec))
        stream.spec = spec

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        await self._reachable(timeout_s)
        for stream in self._hub.streams.values():
            if any(matches(pattern, subject) for pattern in stream.spec.subjects):
                self._hub.deliver(self, Message(subject, data, headers))
                return len(stream.messages)
        raise StreamMissing(f"no stream keeps {subject}")

    @asynccontextmanager
    async def consume(
        self, stream: str, *, durable: str | None = None, queue_messages: int = 256
    ) -> AsyncIterator[AsyncIterator[Delivery]]:
        del queue_messages
        await anyio.lowlevel.checkpoint()
        kept = self._hub.streams.get(stream)
        if kept is None:
            raise StreamMissing(f"there is no stream {stream}")
        yield _deliveries(kept, set() if durable is None else kept.acked[durable])

    async def _reachable(self, timeout_s: float) -> None:
        await anyio.lowlevel.checkpoint()
        if self._cut:
            await anyio.sleep(timeout_s)
            raise BusTimeout(f"no answer within {timeout_s:g} s")


class _Desk:
    """Takes the requests of one endpoint; at most `concurrency` are worked on at once."""

    def __init__(self, bus: MemoryBus, endpoint: Endpoint, tasks: TaskGroup) -> None:
        self._bus = bus
        self._endpoint = endpoint
        self._tasks = tasks
        self._slots = anyio.CapacityLimiter(endpoint.concurrency)
        self._open = 0

    def take(self, message: Message, reply: _Reply | None) -> None:
        if self._open >= self._endpoint.concurrency + self._endpoint.queue_messages:
            self._give(reply, RequestRefused(503, f"{self._endpoint.name} has too many requests"))
            return
        self._open += 1
        self._tasks.start_soon(self._answer, message, reply)

    async def _answer(self, message: Message, reply: _Reply | None) -> None:
        try:
            async with self._slots:
                self._give(reply, await self._endpoint.handle(message))
        except RequestRefused as refusal:
            self._give(reply, refusal)
        except Exception:  # the border of a handler: its bug must not end the service
            log.exception("%s: a handler failed", self._endpoint.name)
            self._give(reply, RequestRefused(500, "internal error"))
        finally:
            self._open -= 1

    def _give(self, reply: _Reply | None, answer: bytes | RequestRefused) -> None:
        if reply is not None and self._bus.connected:
            reply.give(answer)


class _Delivered:
    """One message of a stream."""

    def __init__(self, message: Message, sequence: int, acked: set[int]) -> None:
        self.message = message
        self.sequence = sequence
        self._acked = acked

    async def ack(self) -> None:
        await anyio.lowlevel.checkpoint()
        self._acked.add(self.sequence)


async def _deliveries(stream: _Stream, acked: set[int]) -> AsyncIterator[Delivery]:
    given_s: dict[int, float] = {}
    while True:
        now_s, grown = anyio.current_time(), stream.grown
        for sequence, message in enumerate(tuple(stream.messages), start=1):
            due = given_s.get(sequence, -REDELIVER_S) + REDELIVER_S <= now_s
            if sequence not in acked and due:
                given_s[sequence] = now_s
                yield _Delivered(message, sequence, acked)
        with anyio.move_on_after(REDELIVER_S):
            await grown.wait()
