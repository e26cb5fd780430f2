"""The ports: what a service may ask of the world, and what it is promised.

`Bus` carries what happens (NATS), `Store` holds what is (etcd), `Http` reaches engines, `Frames`
listens to an engine's ZeroMQ sockets. A service takes ports and never a client library; only
modules of `proto.wire` know one. Every method may be cancelled at any await without leaving a
task, a subscription or a lock behind.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

Headers = Mapping[str, str]
NO_HEADERS: Headers = {}


# --- Bus ------------------------------------------------------------------------------------


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
        """Write what must not be there; returns its revision, None if it is there."""

    async def update(
        self, key: str, value: bytes, *, revision: int, timeout_s: float = 5.0
    ) -> int | None:
        """Write over `revision`; returns the new one, None if somebody else was first."""

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


# --- Store ----------------------------------------------------------------------------------


class Entry(msgspec.Struct, frozen=True):
    """A key as it is. `revision` is the store's revision at which it was last written; `lease`
    is the id of the lease it lives under, 0 for none."""

    key: str
    value: bytes
    revision: int
    lease: int = 0


class Lease(msgspec.Struct, frozen=True):
    """A promise to keep alive: keys under it vanish `ttl_s` after the last renewal."""

    id: int
    ttl_s: int


class Put(msgspec.Struct, frozen=True):
    """A key was written, or was there when the watch began."""

    entry: Entry


class Deleted(msgspec.Struct, frozen=True):
    """A key is gone: deleted, or its lease ended."""

    key: str
    revision: int


class Synced(msgspec.Struct, frozen=True):
    """What came before this is the whole truth as of `revision`; the watch is live."""

    revision: int


class Stale(msgspec.Struct, frozen=True):
    """The store is out of reach; what was seen so far may be old until the next `Synced`."""

    reason: str


WatchEvent = Put | Deleted | Synced | Stale


class Store(Protocol):
    """A consistent key-value store with leases and watches; keys are text paths.

    Reads are linearizable. Every call has a deadline inside the carrier and raises
    `StoreUnavailable` after it. An unguarded write that is retried by the carrier may be applied
    twice, with the same value; guarded writes (`expected_revision`) are never retried blindly.
    """

    async def get(self, key: str) -> Entry | None: ...

    async def list(self, prefix: str) -> Sequence[Entry]:
        """Every entry whose key starts with `prefix`, ordered by key."""

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> int:
        """Write; returns the new revision. Raises `LeaseLost` when the lease is not there."""

    async def put_if(
        self, key: str, value: bytes, *, expected_revision: int, lease: Lease | None = None
    ) -> int | None:
        """Write only if the key was last written at `expected_revision` (0: does not exist).
        Returns the new revision, None if somebody else was first."""

    async def delete(self, key: str, *, expected_revision: int | None = None) -> bool:
        """Delete; False if it was not there, or was not at `expected_revision`."""

    async def grant(self, ttl_s: int) -> Lease: ...

    async def keep_alive(self, lease: Lease) -> None:
        """Renew until cancelled; raises `LeaseLost` once the lease is certainly gone."""

    async def revoke(self, lease: Lease) -> None:
        """End a lease and delete what is under it; fine if it has ended already."""

    def watch(self, prefix: str) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]:
        """The state under `prefix`, then every change, each once and in order.

        Begins with a `Put` for each entry and a `Synced`. When the store goes away a `Stale`
        comes, and the carrier reconnects for ever; then the changes missed (after a compaction:
        the difference, as ordinary `Put` and `Deleted`) and another `Synced`.
        """


# --- Http -----------------------------------------------------------------------------------


class HttpTimeouts(msgspec.Struct, frozen=True):
    """Deadlines of one exchange, in seconds; there is deliberately no single total here."""

    connect_s: float = 3.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    first_piece_s: float | None = None
    """For the first piece of the body, where that may take longer; None: as `idle_s`."""


DEFAULT_TIMEOUTS = HttpTimeouts()


HttpTake = Callable[[bytes, float], bool]
"""Is handed a piece, and the loop's time; says whether it can have the next one at once. Must not
wait."""


class HttpResponse(Protocol):
    """The head of an answer, and its body in pieces as they come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers:
        """Names in lower case."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body; raises `HttpBroken` if it ends early, and on silence `HttpTimeout`
        ("first_piece" or "idle"). May be taken once."""

    async def pour(self, take: HttpTake) -> bool:
        """The body, each piece handed to `take` as soon as it is read, in the context of who pours.
        False once `take` wants no more for now: then call again, for the rest. Raises as `chunks`,
        and what `take` does."""

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        """The whole body, at most `limit_bytes` (else `HttpBroken`)."""


class Http(Protocol):
    """An HTTP client with pooled connections. Leaving an exchange before its body has ended
    closes the connection, which is how a cancelled request reaches the engine."""

    def exchange(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Headers = NO_HEADERS,
        timeouts: HttpTimeouts = DEFAULT_TIMEOUTS,
    ) -> AbstractAsyncContextManager[HttpResponse]:
        """Send and wait for the head. Raises `HttpUnreachable`, `HttpBroken`, `HttpTimeout`."""


class HttpLimits(msgspec.Struct, frozen=True):
    """What a server bears of its clients."""

    body_bytes_max: int = 32 << 20
    request_s: float = 75.0
    """For a whole request to come in, and between two on one connection."""
    stall_s: float = 30.0
    """For a client to read what is there for it."""


class HttpCall(Protocol):
    """One request that has come in whole, and the way back. A handler is cancelled when its client
    goes away before it has all."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """Without the query."""

    @property
    def headers(self) -> Headers:
        """Names in lower case."""

    @property
    def body(self) -> bytes: ...

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """The head, once. `length` is the body's, in bytes; None: it comes in pieces, and ends when
        the handler returns, or says so before."""

    def put(self, data: bytes) -> bool:
        """A piece of the body. False: wait until it is `writable` before the next one."""

    async def writable(self) -> None:
        """Waits while the client does not read, and raises `HttpTimeout` ("reading") when that
        takes too long; the connection is closed then."""

    async def write(self, data: bytes) -> None:
        """Both, one after the other."""

    def finish(self) -> None:
        """The body is whole: what the handler still does is not for the client, and is done though
        it should go. What is put behind it is not sent."""


HttpHandler = Callable[[HttpCall], Awaitable[None]]
HttpRefuse = Callable[[int, str], tuple[Headers, bytes]]
"""Headers and body of an answer that the server gives by itself: status, and why."""


class HttpPort(Protocol):
    """A port that is listened on."""

    @property
    def port(self) -> int: ...

    def retire(self, *, stop_listening: bool) -> None:
        """Answers tell clients not to come again on the same connection. With `stop_listening`
        nobody new comes at all: right where another process has the same port, too."""


class HttpServing(Protocol):
    """An HTTP server."""

    def serve(
        self,
        host: str,
        port: int,
        handle: HttpHandler,
        *,
        refuse: HttpRefuse,
        limits: HttpLimits,
        shared: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> AbstractAsyncContextManager[HttpPort]:
        """Listen while the context is open; port 0 takes a free one. Raises `HttpCannotListen`.
        Processes that all say `shared` share a port: each connection goes to one of them. With
        `tls` it is HTTPS."""


# --- Frames ---------------------------------------------------------------------------------


class FrameStream(Protocol):
    """Multipart messages of one ZeroMQ SUB socket, in order; `dropped` as in `Subscription`."""

    @property
    def dropped(self) -> int: ...

    def __aiter__(self) -> AsyncIterator[Sequence[bytes]]: ...


class Frames(Protocol):
    """ZeroMQ as engines speak it: a PUB socket to follow, a ROUTER socket to ask for replay."""

    def subscribe(
        self, endpoint: str, *, queue_messages: int = 65_536
    ) -> AbstractAsyncContextManager[FrameStream]:
        """Follow a PUB socket; reconnects by itself for as long as the context is open."""

    def ask(
        self, endpoint: str, request: Sequence[bytes], *, silence_s: float
    ) -> AsyncIterator[Sequence[bytes]]:
        """Send to a ROUTER socket as a DEALER and yield the replies until the caller stops;
        raises `FramesError` after `silence_s` without one."""
