"""What happens: subjects, request and reply, durable streams and buckets (NATS)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from proto.wire.ports.headers import NO_HEADERS, Headers


class Message(msgspec.Struct, frozen=True):
    """One message as it arrived. `headers` carries W3C trace context, never content."""

    subject: str
    data: bytes
    headers: Headers = NO_HEADERS


Handler = Callable[[Message], Awaitable[bytes]]
AtOnce = Callable[[Message], bytes | None]


class Endpoint(msgspec.Struct, frozen=True):
    """One request/reply endpoint of a service.

    `handle` returns the reply or raises `RequestRefused`; any other exception is answered with
    code 500, counted and logged, and never ends the service. At most `concurrency` handlers run
    at once and at most `queue_messages` wait behind them; what comes on top is refused with 503.
    Replicas that give the same `group` share the requests; without one each gets every request.

    What needs no waiting may be answered by `at_once`, which is asked first and leaves to `handle`
    what it returns None for. It takes no place of those, and a fraction of the time.
    """

    name: str
    subject: str
    handle: Handler
    at_once: AtOnce | None = None
    group: str | None = "q"
    concurrency: int = 64
    queue_messages: int = 4096


class ServiceInfo(msgspec.Struct, frozen=True):
    """How a service announces itself (`nats micro ls` shows it)."""

    name: str
    version: str
    description: str = ""
    metadata: Mapping[str, str] = {}


class StreamSpec(msgspec.Struct, frozen=True):
    """A durable stream: messages on `subjects` are kept until a limit drops the oldest."""

    name: str
    subjects: tuple[str, ...]
    max_age_s: float
    max_bytes: int


class BucketSpec(msgspec.Struct, frozen=True):
    """A bucket of small values by key; what nobody has written for `max_age_s` is forgotten.

    Nothing else is: one that holds `max_bytes` takes no more until something is deleted.
    `name` is of letters, digits, `-` and `_`; a key may also have dots.
    """

    name: str
    max_age_s: float
    max_bytes: int


class Cell(msgspec.Struct, frozen=True):
    """A key of a bucket as it was at one `revision`; revisions grow over the whole bucket."""

    key: str
    value: bytes | None
    """None: deleted."""
    revision: int


class Bucket(Protocol):
    """Values by key, each write guarded by what the writer has seen: compare and set.

    Reads are consistent with writes. A write that raises `BusTimeout` or `BusUnavailable` may or
    may not have happened; read again before the next one.
    """

    async def get(self, key: str, *, timeout_s: float = 5.0) -> Cell | None:
        """None if it is not there. Raises `BusTimeout`, `BusUnavailable`, `StreamMissing`."""

    async def create(self, key: str, value: bytes, *, timeout_s: float = 5.0) -> int | None:
        """Write what must not be there; returns its revision, None if it is there. Raises
        `BucketFull`."""

    async def update(
        self, key: str, value: bytes, *, revision: int, timeout_s: float = 5.0
    ) -> int | None:
        """Write over `revision`; returns the new one, None if somebody else was first. Raises
        `BucketFull` where it takes more room than before."""

    async def delete(self, key: str, *, revision: int, timeout_s: float = 5.0) -> bool:
        """Delete what was written at `revision`; False if somebody else was first."""

    async def list(self, *, timeout_s: float = 10.0) -> Sequence[Cell]:
        """All that is there now."""

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[Cell]]:
        """What is there, then every change: of several changes of one key perhaps only the last,
        a change may come twice, and who reads late may miss that a key was deleted."""


class Subscription(Protocol):
    """Messages of one subscription, in the order each publisher sent them.

    At most `queue_messages` wait; when full, new messages are dropped and `dropped` grows: the
    reader of a numbered stream sees the gap and resynchronises.
    """

    @property
    def dropped(self) -> int: ...

    @property
    def waiting(self) -> int:
        """Messages that have arrived and were not taken yet."""

    def take(self) -> Message | None:
        """The next message, if one waits."""

    def __aiter__(self) -> AsyncIterator[Message]: ...


class Delivery(Protocol):
    """A message of a durable stream; comes again until acknowledged."""

    @property
    def message(self) -> Message: ...

    @property
    def sequence(self) -> int: ...

    async def ack(self) -> None: ...


class Bus(Protocol):
    """A message bus: subjects, request/reply, services, durable streams.

    Subjects are dot-separated tokens; in a subscription `*` matches one token and a final `>` one
    or more. A carrier reconnects by itself, for ever, and re-subscribes; `connected` tells.
    """

    @property
    def connected(self) -> bool: ...

    async def publish(self, subject: str, data: bytes, *, headers: Headers = NO_HEADERS) -> None:
        """Send at most once. Buffers up to a bound while disconnected, then `BusUnavailable`."""

    def subscribe(
        self, subject: str, *, queue_messages: int = 65_536
    ) -> AbstractAsyncContextManager[Subscription]:
        """Listen; once entered, every later message is seen."""

    async def request(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> Message:
        """Ask one responder. Raises `NoResponder`, `BusTimeout`, `BusUnavailable`,
        `RequestRefused`."""

    def serve(
        self, service: ServiceInfo, endpoints: Sequence[Endpoint]
    ) -> AbstractAsyncContextManager[None]:
        """Answer requests while the context is open; leaving it finishes those under way."""

    async def ensure_stream(self, spec: StreamSpec, *, timeout_s: float = 10.0) -> None:
        """Create or update a durable stream. Raises `StreamMissing`, `BusUnavailable`."""

    async def append(
        self, subject: str, data: bytes, *, timeout_s: float, headers: Headers = NO_HEADERS
    ) -> int:
        """Publish to a durable stream and wait until it is stored; returns its sequence number.
        Raises `BusTimeout`, `BusUnavailable`, `StreamMissing`."""

    def consume(
        self, stream: str, *, durable: str | None = None, queue_messages: int = 256
    ) -> AbstractAsyncContextManager[AsyncIterator[Delivery]]:
        """Read a durable stream from its first kept message, or, with a `durable` name, from
        where that name last acknowledged. What is read and not acknowledged comes again."""

    async def bucket(self, spec: BucketSpec, *, timeout_s: float = 10.0) -> Bucket:
        """A bucket, made if it is not there. Raises `StreamMissing`, `BusUnavailable`."""
