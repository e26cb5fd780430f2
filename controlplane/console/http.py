"""The page and its feed, over HTTP: files, server-sent events, and questions. Nothing
can be changed from here.

Browsers are told to take nothing from elsewhere, and a name in `Host` that is not ours is refused:
else a page of somebody else's could read this one by a name that it makes point to this machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from importlib.resources import files
from urllib.parse import urlsplit

import anyio
import msgspec
from aiohttp import web

from controlplane.console.audience import Audience, Full
from controlplane.console.settings import ConsoleSettings
from controlplane.console.spans import ACCEPTED, NotSpans, SpanStore
from controlplane.runtime.service import CannotServe
from proto.decisions import Decision
from proto.ids import BadName, RequestId, check_name
from proto.wire.errors import BusError

log = logging.getLogger(__name__)

CLOSE_S = 1.0
EXPORT_BYTES_MAX = 16 << 20
QUIET_S = 15.0
"""A comment is sent after so long without an event, so that a dead connection is noticed."""
OUR_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline';"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Explain = Callable[[RequestId], Awaitable[list[Decision]]]
"""What routers remember of a request."""


class PortTaken(CannotServe):
    """The console's port cannot be had."""


class Site:
    """Listens while its context is open."""

    def __init__(
        self,
        settings: ConsoleSettings,
        audience: Audience,
        opening: Callable[[], list[bytes]],
        explain: Explain,
        spans: SpanStore | None,
    ) -> None:
        """`opening` gives the first events of a page that opens now."""
        self._settings = settings
        self._audience = audience
        self._opening = opening
        self._explain = explain
        self._spans = spans
        self._files = _load_files()
        self._runner: web.AppRunner | None = None
        self.port = settings.port

    async def __aenter__(self) -> Site:
        app = web.Application(middlewares=[self._guard], client_max_size=EXPORT_BYTES_MAX)
        app.router.add_get("/", self._page)
        app.router.add_get("/assets/{name}", self._asset)
        app.router.add_get("/api/events", self._events)
        app.router.add_get("/api/explain/{request}", self._explained)
        if self._spans is not None:
            app.router.add_get("/api/trace/{name}", self._trace)
            app.router.add_post("/v1/traces", self._take_spans)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=CLOSE_S
        )
        await self._runner.setup()
        host, port = self._settings.host, self._settings.port
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise PortTaken(
                f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); "
                "choose another port with --console.port, or 0 for a free one"
            ) from error
        self.port = int(self._runner.addresses[0][1])
        log.info("the console is at http://%s:%d", host, self.port)
        return self

    async def __aexit__(self, *details: object) -> None:
        assert self._runner is not None
        self._audience.dismiss()
        with anyio.move_on_after(2 * CLOSE_S, shield=True):
            await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        name = urlsplit(f"//{request.host}").hostname or ""
        if name not in OUR_NAMES and name not in self._settings.hosts:
            return web.Response(
                status=421,
                text=f"this console is not called {name!r}; if it is, start it with"
                f" --console.hosts {name}\n",
            )
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(HEADERS)
            raise
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _page(self, _: web.Request) -> web.Response:
        return self._file("index.html")

    async def _asset(self, request: web.Request) -> web.Response:
        return self._file(request.match_info["name"])

    def _file(self, name: str) -> web.Response:
        if name not in self._files:
            raise web.HTTPNotFound(text=f"there is no {name}\n")
        kind = TYPES[name[name.rindex(".") :]]
        return web.Response(body=self._files[name], content_type=kind, charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={**HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        try:
            with self._audience.seat() as mail:
                await response.prepare(request)
                for event in self._opening():
                    await response.write(event)
                while True:
                    with anyio.move_on_after(QUIET_S) as quiet:
                        await response.write(await mail.receive())
                    if quiet.cancelled_caught:
                        await response.write(b": still here\n\n")
        except Full:
            return web.Response(status=503, text="too many pages look at this console\n")
        except (anyio.EndOfStream, ConnectionError):
            return response

    async def _explained(self, request: web.Request) -> web.Response:
        try:
            name = RequestId(check_name(request.match_info["request"], "request"))
            decisions = await self._explain(name)
        except BadName as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        except BusError as error:
            raise web.HTTPServiceUnavailable(text=f"{error}\n") from error
        return web.Response(body=msgspec.json.encode(decisions), content_type="application/json")

    async def _trace(self, request: web.Request) -> web.Response:
        assert self._spans is not None, "there is no such route without them"
        spans = self._spans.find(request.match_info["name"])
        return web.Response(body=msgspec.json.encode(spans), content_type="application/json")

    async def _take_spans(self, request: web.Request) -> web.Response:
        assert self._spans is not None, "there is no such route without them"
        try:
            self._spans.take(await request.read())
        except NotSpans as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        return web.Response(body=ACCEPTED, content_type="application/x-protobuf")


def _load_files() -> dict[str, bytes]:
    """Everything of the page; read once, as it is small."""
    folder = files("controlplane.console") / "web"
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.endswith(tuple(TYPES))
    }
