"""A small OpenAI server that streams completions, well or badly as a test wants it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

MODEL = "tiny"
CACHED_TOKENS = 128

Behave = Callable[["Server", web.Request, dict[str, object]], Awaitable[web.StreamResponse]]


@dataclass
class Server:
    """What it was asked, and how it answers."""

    behave: Behave
    models: tuple[str, ...]
    url: str = ""
    asked: list[dict[str, object]] = field(default_factory=list)
    policies: list[str] = field(default_factory=list)
    open: int = 0
    open_max: int = 0

    async def list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": m} for m in self.models]})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.asked.append(body)
        self.policies.append(request.headers["x-tokenplane-policy"])
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            return await self.behave(self, request, body)
        finally:
            self.open -= 1


@asynccontextmanager
async def serving(behave: Behave, models: tuple[str, ...] = (MODEL,)) -> AsyncIterator[Server]:
    """Answers until left; a handler whose client has gone is cancelled."""
    server = Server(behave, models)
    app = web.Application(client_max_size=1 << 24)
    app.router.add_get("/v1/models", server.list_models)
    app.router.add_post("/v1/completions", server.complete)
    runner = web.AppRunner(app, shutdown_timeout=1, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield server
    finally:
        await runner.cleanup()


async def streamed(request: web.Request, *events: object, done: bool = True) -> web.StreamResponse:
    """Each event as one server-sent event; text goes out as it is."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
        await response.write(text.encode())
    if done:
        await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def token(text: str = "x") -> dict[str, object]:
    return {"object": "text_completion", "choices": [{"index": 0, "text": text}]}


def usage(tokens: int) -> dict[str, object]:
    details = {"cached_tokens": CACHED_TOKENS}
    return {
        "choices": [],
        "usage": {"completion_tokens": tokens, "prompt_tokens_details": details},
    }


async def well(server: Server, request: web.Request, body: dict[str, object]) -> web.StreamResponse:
    """As many tokens as asked for, then the usage."""
    tokens = body["max_tokens"]
    assert isinstance(tokens, int)
    return await streamed(request, *[token()] * tokens, usage(tokens))
