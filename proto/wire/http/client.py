"""The HTTP client: kept-alive connections, one exchange at a time on each, pieces as they come."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio

from proto.wire.errors import HttpBroken, HttpTimeout, HttpUnreachable
from proto.wire.http.connection import ClientConnection, Response
from proto.wire.ports import (
    DEFAULT_TIMEOUTS,
    NO_HEADERS,
    Headers,
    HttpResponse,
    HttpTimeouts,
)

KEPT_ALIVE_S = 15.0
KEEP_ALIVE_RACE_S = 0.2
"""An origin may close a kept connection while a request is on its way there, which nobody executes
then. That is known a round trip after it was sent; so much is allowed for one and a busy loop.
Where it takes longer the origin may have been at work, and would do it twice if asked again."""
PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a URL points to."""

    scheme: str
    host: str
    port: int


class HttpClient:
    """The `Http` port; an async context manager with one pool of connections."""

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        unix_socket: str | None = None,
        ca: str | None = None,
    ) -> None:
        """`tls` says whom to trust of servers with https, and who we are; else the system does, or,
        with `ca`, servers are believed whom the authority of that PEM file has signed, and no
        others. With `unix_socket` every exchange goes there, whatever host its URL names."""
        self._unix_socket = unix_socket
        self._ca = ca
        self._idle: dict[Origin, deque[ClientConnection]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._tls = tls

    async def __aenter__(self) -> HttpClient:
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(self, *details: object) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        self._loop = None

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
        assert self._loop is not None, "an HttpClient must be entered first"
        origin, request = _request(method, url, body, headers)
        connection, response = await self._head(origin, request, url, timeouts)
        try:
            yield response
        finally:
            # An unfinished answer closes its connection, which is what stops the engine.
            if connection.leave():
                self._keep(origin, connection)

    async def _head(
        self, origin: Origin, request: bytes, url: str, timeouts: HttpTimeouts
    ) -> tuple[ClientConnection, Response]:
        """Send, and wait for the head. A kept connection that its owner has closed meanwhile
        without a word is replaced by a new one, once."""
        assert self._loop is not None
        kept = self._kept(origin)
        if kept is not None:
            sent_s = self._loop.time()
            try:
                return kept, await kept.send(request, url, timeouts)
            except HttpBroken:
                if kept.heard or self._loop.time() - sent_s > KEEP_ALIVE_RACE_S:
                    raise
        try:
            connection = await self._connect(origin, url, timeouts.connect_s)
        except HttpUnreachable as error:
            if kept is None:
                raise
            raise HttpBroken(f"{error}, after it had been sent once") from error
        return connection, await connection.send(request, url, timeouts)

    async def _connect(self, origin: Origin, url: str, connect_s: float) -> ClientConnection:
        assert self._loop is not None
        try:
            with anyio.fail_after(connect_s):
                if self._unix_socket is not None:
                    _, connection = await self._loop.create_unix_connection(
                        ClientConnection, self._unix_socket
                    )
                else:
                    context = self._context(origin.scheme)
                    _, connection = await self._loop.create_connection(
                        ClientConnection, origin.host, origin.port, ssl=context
                    )
        except TimeoutError as error:
            raise HttpTimeout("connect", connect_s) from error
        except OSError as error:
            raise HttpUnreachable(f"{url}: {error}") from error
        return connection

    def _context(self, scheme: str) -> ssl.SSLContext | None:
        if scheme != "https":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self._ca)
        return self._tls

    def _kept(self, origin: Origin) -> ClientConnection | None:
        """The connection used last, which is the least likely to have been closed."""
        connections = self._idle.get(origin)
        while connections:
            connection = connections.pop()
            if connection.usable:
                return connection
        return None

    def _keep(self, origin: Origin, connection: ClientConnection) -> None:
        if self._loop is None:  # the client has been left meanwhile
            connection.abort()
            return
        connection.kept_s = self._loop.time()
        self._idle.setdefault(origin, deque()).append(connection)
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(KEPT_ALIVE_S / 3, self._sweep)

    def _sweep(self) -> None:
        """Close what nobody has used for a while; come again while there is anything."""
        assert self._loop is not None
        old_s = self._loop.time() - KEPT_ALIVE_S
        for origin, connections in list(self._idle.items()):
            while connections and (connections[0].kept_s < old_s or not connections[0].usable):
                connections.popleft().abort()
            if not connections:
                del self._idle[origin]
        again = self._loop.call_later(KEPT_ALIVE_S / 3, self._sweep) if self._idle else None
        self._sweeping = again


def _request(method: str, url: str, body: bytes, headers: Headers) -> tuple[Origin, bytes]:
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"not a URL that can be asked: {url!r}")
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body or method not in ("GET", "HEAD"):
        lines.append(f"content-length: {len(body)}")
    head = "\r\n".join(lines)
    if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
        raise ValueError("a header or URL with a line break in it")
    origin = Origin(parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme])
    return origin, head.encode("latin-1") + b"\r\n\r\n" + body
