"""One connection to an origin, and the answer that comes on it.

The path of a piece is short, as it is walked for every token: the parser hands it over, who waits
is woken, and no deadline is set anew. A timer that looks now and then sees whether the last piece
is too long ago.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import cast

import httptools

from proto.wire.errors import HttpBroken, HttpError, HttpTimeout, HttpTooLong
from proto.wire.ports import Headers, HttpTake, HttpTimeouts

READ_BUFFER_BYTES = 64 << 10
"""What one response may hold unread: a slow reader then slows the engine's socket."""
HEAD_BYTES_MAX = 64 << 10


class ClientConnection(asyncio.Protocol):
    """Sends one request after the other; `leave` between them."""

    def __init__(self) -> None:
        self.kept_s = 0.0
        """When it was last put aside, in the loop's time."""
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._lost = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent, as far as is known."""
        return not self._lost and self._transport is not None and not self._transport.is_closing()

    @property
    def heard(self) -> bool:
        """The origin has said something to the request sent last."""
        return self._response is not None and self._response.heard

    async def send(self, request: bytes, url: str, timeouts: HttpTimeouts) -> Response:
        """Send a whole request and wait for the head of the answer. Raises `HttpBroken`,
        `HttpTimeout`; the connection is closed then."""
        assert self._transport is not None, "not connected"
        response = self._response = Response(self._transport, url, timeouts)
        try:
            if self._lost:
                response.end(None)
            self._transport.write(request)
            await response.head()
        except BaseException:
            self.abort()
            raise
        return response

    def leave(self) -> bool:
        """The answer is no longer wanted. True if the connection may be used again."""
        response, self._response = self._response, None
        if response is not None and response.finish() and self.usable:
            return True
        self.abort()
        return False

    def abort(self) -> None:
        """Close it at once."""
        if self._response is not None:
            self._response.finish()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        link = transport.get_extra_info("socket")
        if link.family != socket.AF_UNIX:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._response is None:  # it speaks without being asked
            self.abort()
        else:
            self._response.feed(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._response is not None:
            self._response.end(error)


class Response:
    """The `HttpResponse` port, and the callbacks of its parser."""

    def __init__(self, transport: asyncio.Transport, url: str, timeouts: HttpTimeouts) -> None:
        self.status = 0
        self.heard = False
        self._headers: dict[str, str] = {}
        self._transport = transport
        self._url = url
        self._timeouts = timeouts
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        """It knows us and we know it: taken apart at the end, as services seldom
        look for garbage of that kind."""
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._unread_bytes = 0
        self._head_bytes = 0
        self._paused = False
        self._complete = False
        self._reusable = False
        self._take: HttpTake | None = None
        self._context = copy_context()
        """Of who takes."""
        self._failure: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._phase, self._patience_s, self._due_s = "", 0.0, 0.0

    @property
    def headers(self) -> Headers:
        return self._headers

    async def head(self) -> None:
        """Wait for the head."""
        self._wait_for("first_byte", self._timeouts.first_byte_s)
        while not self.status:
            await self._news()

    async def chunks(self) -> AsyncIterator[bytes]:
        self._wait_for_first_piece()
        while True:
            if self._pieces:
                yield self._unread()
                self._heard_at(self._loop.time())
            elif self._complete:
                return
            else:
                await self._news()

    async def pour(self, take: HttpTake) -> bool:
        if self._phase == "idle":
            self._heard_at(self._loop.time())  # while nothing was wanted nothing was late
        else:
            self._wait_for_first_piece()
        self._take, self._context = take, copy_context()
        try:
            self._hand_over()
            while self._take is not None:
                if self._complete:
                    return True
                await self._news()
        finally:
            self._take = None
        if self._failure is not None:
            raise self._failure
        return False

    async def read(self, *, limit_bytes: int = 64 << 20) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit_bytes:
                raise HttpTooLong(f"{self._url}: more than {limit_bytes} bytes")
            parts.append(chunk)
        return b"".join(parts)

    def feed(self, data: bytes) -> None:
        """Bytes from the connection."""
        self.heard = True
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(HttpBroken(f"{self._url}: not HTTP: {error}"))
        except httptools.HttpParserUpgrade:
            self._fail(HttpBroken(f"{self._url}: it wants to speak something else"))
        if self._unread_bytes > READ_BUFFER_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._hand_over()
        if self._take is None or self._complete:
            self._wake()

    def end(self, error: Exception | None) -> None:
        """The connection is gone. An answer that says neither its length nor its pieces ends so."""
        if self._complete:
            return
        says_its_end = "content-length" in self._headers or "transfer-encoding" in self._headers
        if self.status and not says_its_end and error is None:
            self._complete = True
            self._wake()
        else:
            self._fail(HttpBroken(f"{self._url}: {error or 'the connection was closed'}"))

    def finish(self) -> bool:
        """Nobody reads any more. True if the answer was whole and another may follow it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._parser = None
        return self._complete and self._reusable and not self._paused

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False
            raise ValueError("more than was asked for")  # so that nothing is taken of it

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise ValueError(f"a head of more than {HEAD_BYTES_MAX} bytes")
        if self.status:  # behind a chunked body
            return
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
        else:  # an interim answer: the real one follows
            self._headers = {}

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)
        self._unread_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.status and self._parser is not None:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()

    def _hand_over(self) -> None:
        """What is there, to who pours; whatever he does, the connection goes on reading."""
        if self._take is None or not self._pieces:
            return
        now_s = self._loop.time()
        self._heard_at(now_s)
        try:
            if not self._context.run(self._take, self._unread(), now_s):
                self._take = None
        except Exception as error:  # noqa: BLE001 raised again where it is waited for
            self._take, self._failure = None, error

    def _unread(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        self._unread_bytes = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _heard_at(self, now_s: float) -> None:
        """The next piece is waited for from now on."""
        self._phase = "idle"
        self._patience_s = self._timeouts.idle_s
        self._due_s = now_s + self._patience_s

    def _wait_for_first_piece(self) -> None:
        first_s, idle_s = self._timeouts.first_piece_s, self._timeouts.idle_s
        self._wait_for("first_piece", idle_s if first_s is None else first_s)

    def _wait_for(self, phase: str, patience_s: float) -> None:
        self._phase, self._patience_s = phase, patience_s
        self._due_s = self._loop.time() + patience_s
        if self._timer is None or self._timer.when() > self._due_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        """Whether what is waited for is late. Silence counts only while somebody waits."""
        now_s = self._loop.time()
        if self._waiter is not None and now_s >= self._due_s:
            self._timer = None
            self._fail(HttpTimeout(self._phase, self._patience_s))
            return
        if self._waiter is None:
            self._due_s = max(self._due_s, now_s + self._patience_s)
        self._timer = self._loop.call_at(self._due_s, self._look)

    async def _news(self) -> None:
        if self._failure is not None:
            raise self._failure
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self._pieces:
            raise self._failure

    def _fail(self, failure: HttpError) -> None:
        if self._failure is None and not self._complete:
            self._failure = failure
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
