"""One small application for every HTTP server that may carry the gateway's streams.

`python -m bench.http_servers ours|aiohttp --port P` serves it; `app` is the same for servers that
speak ASGI. It imports what it serves with only then, as each server has an environment of its own.
POST /stream: events of a token each, one every `STEP_S`. POST /whole: a short answer.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

STEP_S = 0.01
EVENTS = 100
EVENT = b'data: {"id":"cmpl-0","choices":[{"index":0,"text":"word "}],"usage":null}' + b"\n\n"
WHOLE = b'{"id":"cmpl-0","choices":[{"index":0,"text":"word"}]}'
SSE, JSON = "text/event-stream", "application/json"


async def events() -> AsyncIterator[bytes]:
    """One stream."""
    for _ in range(EVENTS):
        yield EVENT
        await asyncio.sleep(STEP_S)


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The application for uvicorn and granian."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    streams = scope["path"] == "/stream"
    length = [] if streams else [(b"content-length", str(len(WHOLE)).encode())]
    kind = (b"content-type", (SSE if streams else JSON).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [kind, *length]})
    if streams:
        async for event in events():
            await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if streams else WHOLE})


async def _serve_ours(port: int) -> None:
    from proto.wire.http import HttpServer
    from proto.wire.ports import HttpCall, HttpLimits

    async def handle(call: HttpCall) -> None:
        if call.path == "/stream":
            call.start(200, {"content-type": SSE})
            async for event in events():
                await call.write(event)
        else:
            call.start(200, {"content-type": JSON}, len(WHOLE))
            await call.write(WHOLE)

    limits = HttpLimits(1 << 20, stall_s=30.0)
    async with HttpServer().serve(
        "127.0.0.1", port, handle, refuse=lambda status, why: ({}, b""), limits=limits
    ):
        await asyncio.sleep(3600)


async def _serve_aiohttp(port: int) -> None:
    from aiohttp import web

    async def stream(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"content-type": SSE})
        await response.prepare(request)
        async for event in events():
            await response.write(event)
        return response

    async def whole(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=WHOLE, content_type=JSON)

    served = web.Application()
    served.add_routes([web.post("/stream", stream), web.post("/whole", whole)])
    runner = web.AppRunner(served, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.sleep(3600)


def main() -> None:
    """`python -m bench.http_servers`"""
    import anyio

    parser = argparse.ArgumentParser(description="A small application on one HTTP server.")
    parser.add_argument("server", choices=["ours", "aiohttp"])
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    serve = _serve_ours if options.server == "ours" else _serve_aiohttp
    anyio.run(serve, options.port, backend="asyncio", backend_options={"use_uvloop": True})


if __name__ == "__main__":
    main()
