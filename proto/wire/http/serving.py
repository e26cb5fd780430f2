"""One client's connection: requests in, answers out."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol, cast

import anyio
import httptools

from proto.wire.errors import HttpTimeout
from proto.wire.ports import Headers, HttpLimits, HttpRefuse

HEAD_BYTES_MAX = 64 << 10
WRITE_BUFFER_BYTES = 64 << 10
LINGER_S = 5.0
"""How long the rest of a refused request is taken in, so that the refusal can be read."""
RESET = struct.pack("ii", 1, 0)
"""`SO_LINGER` for no time: who closes then tells the other side that something was wrong."""
LAST_CHUNK = b"0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}


class Owner(Protocol):
    """Who has the connections."""

    closing: bool

    def opened(self, connection: ServerConnection) -> None: ...

    def lost(self, connection: ServerConnection) -> None: ...

    def begin(self, call: Call) -> None: ...


class ServerConnection(asyncio.Protocol):
    """Reads one request after the other; one is answered at a time."""

    def __init__(self, owner: Owner, refuse: HttpRefuse, limits: HttpLimits) -> None:
        self._owner = owner
        self.say_no = refuse
        self.limits = limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        """It knows us and we know it: taken apart at the end, as services seldom
        look for garbage of that kind."""
        self._call: Call | None = None
        """The request that is being answered."""
        self._next: deque[Call] = deque()
        """Those that have come behind it, in one piece; nothing is read meanwhile."""
        self.ends_by_close = False
        """The client knows by nothing else that it has all; what is cut must end otherwise."""
        self._refused = False
        self._since_s: float | None = None
        """Since when the client owes us (the rest of) a request."""
        self._timer: asyncio.TimerHandle | None = None
        """While there is a client there is one thing that it may not be late with."""
        self._writable: asyncio.Future[None] | None = None
        """Something waits until the client has read."""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._in_head = False
        self._asked = False
        """The client sends the body once it is told to, and will be when it is its turn."""
        self._head_bytes = 0
        self._unheard_bytes = 0
        """Of reads of which the parser has told nothing: it gathers a header until it ends."""
        self._body: list[bytes] = []
        self._body_bytes = 0

    @property
    def transport(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    @property
    def full(self) -> bool:
        """The client has much to read before more is to be written."""
        return self._writable is not None

    async def writable(self) -> None:
        """Until the client has read. Raises `HttpTimeout`."""
        stall_s = self.limits.stall_s
        with anyio.move_on_after(stall_s) as waiting:
            if self._writable is not None:
                await self._writable
        if waiting.cancelled_caught:
            raise HttpTimeout("reading", stall_s)

    def close(self) -> None:
        """No other request; the one that is being answered is cancelled."""
        self._next.clear()
        if self._call is not None:
            self._call.scope.cancel()
        if self.ends_by_close and self._call is not None and not self._call.finished:
            self.abort()
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """At once, whatever is unsent."""
        if self._timer is None:  # nobody is there
            return
        if self.ends_by_close:  # and would pass for whole
            with suppress(OSError):
                link = self.transport.get_extra_info("socket")
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def hang_up(self) -> None:
        """Once the client has read what is there for it, which may not take it long."""
        if self._timer is None:  # it has gone
            return
        self.transport.close()
        self._set_timer(self.limits.stall_s, self.abort)

    def answered(self, *, keep: bool) -> None:
        """The answer is whole: on to the next request, or goodbye."""
        self._call = None
        if not keep:
            self.hang_up()
            return
        if self._next:
            self._begin(self._next.popleft())
        else:
            self._since_s = self._loop.time()
            self.transport.resume_reading()
            if self._asked:
                self._tell_to_send()

    def refuse(self, status: int, why: str) -> None:
        """Answer for ourselves, and take in no other request."""
        if self._refused:
            return
        self._refused = True
        if self._call is not None:  # its answer has begun, or will: nothing can be said between
            self._call.keep = False
            return
        headers, body = self.say_no(status, why)
        self.transport.write(head_of(status, headers, len(body), close=True) + body)
        self._set_timer(LINGER_S, self.hang_up)

    # --- asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self._since_s = self._loop.time()
        self._set_timer(self.limits.request_s, self._look)
        self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._call is not None:
            self._call.leave()
        self.resume_writing()
        self._next.clear()
        self._parser = self._timer = None
        self._owner.lost(self)

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        waiting, self._writable = self._writable, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def data_received(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        try:
            while self._parser is not None and not self._refused:
                self._unheard_bytes += len(rest)
                try:
                    self._parser.feed_data(rest)
                    if self._unheard_bytes > HEAD_BYTES_MAX:
                        self._head_too_large()
                    return
                except httptools.HttpParserUpgrade as wish:
                    rest = memoryview(rest)[wish.args[0] :]
                    self._stay(self._parser)
        except httptools.HttpParserError as error:
            self.refuse(400, f"not HTTP: {error}")

    # --- the parser's callbacks

    def on_message_begin(self) -> None:
        self._url, self._headers, self._head_bytes, self._in_head = b"", {}, 0, True
        self._body, self._body_bytes = [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_head(len(name) + len(value))
        if self._in_head:  # what comes behind a chunked body may not pass for it
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._parser is None or self._parser.should_upgrade():
            return  # it comes again without that wish
        if int(self._headers.get("content-length", 0)) > self.limits.body_bytes_max:
            self._too_large()
        elif self._headers.get("expect", "").lower() == "100-continue":
            self._asked = self._parser.get_http_version() == "1.1"
            if self._asked and self._call is None and not self._refused:
                self._tell_to_send()

    def on_body(self, body: bytes) -> None:
        self._unheard_bytes = 0
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.body_bytes_max:
            self._too_large()
        if not self._refused:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._refused or self._parser is None or self._parser.should_upgrade():
            return
        self._asked = False
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        path = self._url.partition(b"?")[0].decode("latin-1")
        method = self._parser.get_method().decode("latin-1")
        call = Call(self, method, path, self._headers, body)
        call.keep = self._parser.should_keep_alive()
        call.plain = self._parser.get_http_version() == "1.0"
        if self._call is None:
            self._begin(call)
        else:
            self._next.append(call)
            self.transport.pause_reading()

    # --- the rest

    def _begin(self, call: Call) -> None:
        self._since_s = None
        self._call = call
        call.keep = call.keep and not self._owner.closing
        self._owner.begin(call)

    def _tell_to_send(self) -> None:
        self._asked = False
        self.transport.write(CONTINUE)

    def _stay(self, parser: httptools.HttpRequestParser) -> None:
        """Take the head that was read last for one that does not want to speak something else, as a
        server may (RFC 9110, 7.8). `parser` has ended that request without its body; a new one
        gets the head without the wish, and then what follows."""
        method, version = parser.get_method(), parser.get_http_version()
        if method == b"CONNECT":
            self.refuse(400, "this server is no proxy")
            return
        headers = [f"{name}: {value}\r\n" for name, value in self._headers.items()]
        kept = "".join(line for line in headers if not line.startswith("upgrade:"))
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(
            b"%b %b HTTP/%b\r\n%b\r\n"
            % (method, self._url, version.encode(), kept.encode("latin-1"))
        )

    def _count_head(self, count: int) -> None:
        self._unheard_bytes = 0
        self._head_bytes += count
        if self._head_bytes > HEAD_BYTES_MAX:
            self._head_too_large()

    def _head_too_large(self) -> None:
        self.refuse(431, f"a head of more than {HEAD_BYTES_MAX} bytes")

    def _too_large(self) -> None:
        limit = self.limits.body_bytes_max
        self.refuse(413, f"the body is longer than {limit} bytes, which is all that is taken")

    def _look(self) -> None:
        """Who sends nothing for long is left."""
        now_s, limit_s = self._loop.time(), self.limits.request_s
        since_s = now_s if self._since_s is None else self._since_s
        if now_s - since_s >= limit_s:
            self.hang_up()
        else:
            self._set_timer(since_s + limit_s - now_s, self._look)

    def _set_timer(self, after_s: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(after_s, then)


class Call:
    """The `HttpCall` port: one request, and the way back."""

    def __init__(
        self,
        connection: ServerConnection,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> None:
        self.method = method
        self.path = path
        self.headers: Headers = headers
        self.body = body
        self.scope = anyio.CancelScope()
        """Cancelled when the client goes away before it has all."""
        self.gone = False
        self.finished = False
        """The whole answer has been written."""
        self.keep = True
        """The connection may serve another request after this one."""
        self.plain = False
        """The client does not understand an answer in chunks."""
        self._connection = connection
        self._head: bytes | None = None
        """Not sent yet: goes out with what comes first."""
        self._started = False
        self._chunked = False
        self._left_bytes: int | None = None
        """Of a body that says its length."""

    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        self._started = True
        self._left_bytes = length
        self._chunked = length is None and not self.plain
        if length is None and self.plain:
            self.keep = False
            self._connection.ends_by_close = True
        self._head = head_of(status, headers, length, close=not self.keep, chunked=self._chunked)
        if self.method == "HEAD":  # then that is the answer
            self._left_bytes, self._chunked = 0, False
            self._end_body()

    def put(self, data: bytes) -> bool:
        assert self._started, "an answer starts with its head"
        connection = self._connection
        if not data or self.gone or self.finished:
            return not connection.full
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head is not None:
            data, self._head = self._head + data, None
        connection.transport.write(data)
        return not connection.full

    async def writable(self) -> None:
        try:
            await self._connection.writable()
        except HttpTimeout:
            self.abort()
            raise

    async def write(self, data: bytes) -> None:
        if not self.put(data):
            await self.writable()

    def leave(self) -> None:
        """The client has gone. Who has its whole answer goes as it should: what its handler still
        does is not for it, and is done."""
        self.gone = True
        if not self.finished and self._left_bytes != 0:
            self.scope.cancel()

    def finish(self) -> None:
        assert self._started and not self._left_bytes, "the body is there"
        self._end_body()
        if self.plain:  # who does not know of chunks only sees it whole once it is hung up on
            self._connection.hang_up()

    def end(self) -> None:
        """The handler has returned."""
        if self.gone:
            return
        assert self._started, "a handler answers"
        assert not self._left_bytes, "the body is as long as was said"
        self._end_body()
        self._connection.answered(keep=self.keep)

    def _end_body(self) -> None:
        if self.finished or self.gone:
            return
        self.finished = True
        last = (self._head or b"") + (LAST_CHUNK if self._chunked else b"")
        if last:
            self._connection.transport.write(last)

    def abort(self) -> None:
        """Break off, so that what was sent does not look whole."""
        self._connection.abort()

    async def fail(self, status: int, why: str) -> None:
        """The handler has failed: say so, or break off what has begun."""
        if self._started:
            self.abort()
            return
        self.keep = False
        headers, body = self._connection.say_no(status, why)
        self.start(status, headers, len(body))
        self.put(body)
        self.end()


def head_of(
    status: int, headers: Headers, length: int | None, *, close: bool, chunked: bool = False
) -> bytes:
    """An answer's first bytes. Raises ValueError if a header would end early."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    if length is not None:
        lines.append(f"content-length: {length}\r\n")
    if chunked:
        lines.append("transfer-encoding: chunked\r\n")
    if close:
        lines.append("connection: close\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines):
        raise ValueError("a header with a line break in it")
    return b"%b%bdate: %b\r\n\r\n" % (_status_line(status), text.encode("latin-1"), _date())


def _status_line(status: int) -> bytes:
    """Also of one that has no name: what was asked upstream may have a word of its own."""
    return _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status


def _date() -> bytes:
    return _date_at(int(time.time()))


@lru_cache(maxsize=1)
def _date_at(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode()
