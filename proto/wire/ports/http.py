"""Engines are reached, and clients served."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from proto.wire.ports.headers import NO_HEADERS, Headers


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
        """The whole body, at most `limit_bytes` (else `HttpTooLong`)."""


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
        the handler returns, or says so before. Where the method is HEAD it is all that is sent."""

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
