"""Stands in for the OpenTelemetry collector: hands every export on to the trace store."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import ClientSession, web

UPSTREAM = "http://jaeger:4318"
EXPORT_BYTES_MAX = 16 << 20
session = web.AppKey("session", ClientSession)


async def forward(request: web.Request) -> web.Response:
    """One export, bytes and kind as they came."""
    kept = {k: v for k, v in request.headers.items() if k.startswith("Content-")}
    body = await request.content.read()
    async with request.app[session].post(
        UPSTREAM + request.path, data=body, headers=kept, skip_auto_headers=["Content-Type"]
    ) as answer:
        return web.Response(status=answer.status, body=await answer.read())


async def healthy(_: web.Request) -> web.Response:
    return web.Response()


async def client(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(auto_decompress=False) as app[session]:
        yield


def main() -> None:
    app = web.Application(client_max_size=EXPORT_BYTES_MAX)
    app.cleanup_ctx.append(client)
    app.router.add_post("/v1/{signal}", forward)
    app.router.add_get("/", healthy)
    web.run_app(app, port=4318, print=None)


if __name__ == "__main__":
    main()
