"""HTTP within one process: an origin is a function. Anyio only."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import msgspec

from proto.wire.errors import HttpTimeout, HttpTooLong, HttpUnreachable
from proto.wire.ports import (
    DEFAULT_TIMEOUTS,
    NO_HEADERS,
    Headers,
    HttpResponse,
    HttpTake,
    HttpTimeouts,
)


class Request(msgspec.Struct, frozen=True):
    """What an origin is asked; header names in lower case."""

    method: str
    path: str
    body: bytes
    headers: Headers


class Answer(msgspec.Struct, frozen=True):
    """What it says: a head, and a body in pieces. A body that raises `HttpBroken` breaks off."""

    status: int
    body: AsyncGenerator[bytes]
    headers: Headers = NO_HEADERS


Origin = Callable[[Request], Answer]


class MemoryHttp:
    """The `Http` port: routes by scheme and host, such as `http://engine-1`, to an origin."""

    def __init__(self) -> None:
        self.origins: dict[str, Origin] = {}
        """Who is not in here is unreachable."""

    @asynccontextmanager
    async def exchange(
        self,
        method: str,
        url: str,
        *,
        body: bytes = b"",
        headers: Headers = NO_HEADERS,
        timeouts: HttpTimeouts = DEFAULT_TIMEOUTS,
    ) -> AsyncIterator[HttpResponse]:
        await anyio.lowlevel.checkpoint()
        parts = urlsplit(url)
        origin = self.origins.get(f"{parts.scheme}://{parts.netloc}")
        if origin is None:
            raise HttpUnreachable(f"{url}: nobody listens")
        lowered = {name.lower(): value for name, value in headers.items()}
        answer = origin(Request(method, parts.path, body, lowered))
        # Leaving early closes the generator, which is how an origin learns of it.
        async with aclosing(answer.body) as pieces:
            yield _Response(answer, pieces, timeouts)


class _Response:
    def __init__(
        self, answer: Answer, pieces: AsyncGenerator[bytes], timeouts: HttpTimeouts
    ) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self._pieces = pieces
        idle_s, first_s = timeouts.idle_s, timeouts.first_piece_s
        self._idle_s = idle_s
        self._phase, self._patience_s = "first_piece", idle_s if first_s is None else first_s

    async def chunks(self) -> AsyncIterator[bytes]:
        while (piece := await self._next()) is not None:
            yield piece

    async def pour(self, take: HttpTake) -> bool:
        while (piece := await self._next()) is not None:
            if not take(piece, anyio.current_time()):
                return False
        return True

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        whole = b"".join([piece async for piece in self.chunks()])
        if len(whole) > limit_bytes:
            raise HttpTooLong(f"more than {limit_bytes} bytes")
        return whole

    async def _next(self) -> bytes | None:
        with anyio.move_on_after(self._patience_s) as waiting:
            piece = await anext(self._pieces, None)
        if waiting.cancelled_caught:
            raise HttpTimeout(self._phase, self._patience_s)
        self._phase, self._patience_s = "idle", self._idle_s
        return piece
