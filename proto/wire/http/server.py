"""The HTTP server: reads requests whole, gives each to a handler, and waits for slow readers.

A client that goes away before it has all cancels its handler. One that does not read makes its
handler wait, for at most `stall_s`; what waits for it in the process is a few pieces, however long
the answer is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from proto.wire.errors import HttpCannotListen
from proto.wire.http.serving import Call, ServerConnection
from proto.wire.ports import HttpHandler, HttpLimits, HttpRefuse

log = logging.getLogger(__name__)

BACKLOG = 4096
CLOSE_S = 2.0


class HttpServer:
    """The `HttpServing` port."""

    @asynccontextmanager
    async def serve(
        self,
        host: str,
        port: int,
        handle: HttpHandler,
        *,
        refuse: HttpRefuse,
        limits: HttpLimits,
        shared: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[HttpListener]:
        listener = HttpListener(handle, refuse, limits)
        try:
            await listener.open(host, port, shared, tls)
        except OSError as error:
            raise HttpCannotListen(os.strerror(error.errno or 0)) from error
        try:
            yield listener
        finally:
            with anyio.CancelScope(shield=True):
                await listener.close()


class HttpListener:
    """One open port, its connections, and the handlers at work."""

    def __init__(self, handle: HttpHandler, refuse: HttpRefuse, limits: HttpLimits) -> None:
        self._handle = handle
        self._refuse = refuse
        self._limits = limits
        self._server: asyncio.Server | None = None
        self._connections: set[ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost = anyio.Event()
        """A connection is gone."""
        self.closing = False
        """Answers tell clients not to come again on the same connection."""
        self._left = False

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def open(self, host: str, port: int, shared: bool, tls: ssl.SSLContext | None) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: ServerConnection(self, self._refuse, self._limits),
            host,
            port,
            backlog=BACKLOG,
            reuse_port=shared or None,
            ssl=tls,
        )

    def retire(self, *, stop_listening: bool) -> None:
        self.closing = True
        if stop_listening and self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Close everything and wait for the handlers, which are cancelled, and for clients to read
        what is there for them."""
        assert self._server is not None
        self._left = True
        self.retire(stop_listening=True)
        for connection in tuple(self._connections):
            connection.close()
        with anyio.move_on_after(CLOSE_S):
            if self._tasks:
                await asyncio.wait(self._tasks)
            while self._connections:  # what is unsent is read
                self._lost = anyio.Event()
                await self._lost.wait()
        for connection in tuple(self._connections):
            connection.abort()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)

    def opened(self, connection: ServerConnection) -> None:
        """A client has connected; one that was still shaking hands may do so too late."""
        if self._left:
            connection.abort()
        else:
            self._connections.add(connection)

    def lost(self, connection: ServerConnection) -> None:
        """It has gone."""
        self._connections.discard(connection)
        self._lost.set()

    def begin(self, call: Call) -> None:
        """A request is there: have it answered."""
        task = asyncio.get_running_loop().create_task(self._answer(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call) -> None:
        with call.scope:
            try:
                await self._handle(call)
                call.end()
            except (ConnectionError, TimeoutError) as error:
                log.debug("the client of %s is gone: %s", call.path, error)
                call.abort()
            except Exception:  # the top of this request
                log.exception("a bug while answering %s %s", call.method, call.path)
                await call.fail(500, "an error on our side; it has been logged")
