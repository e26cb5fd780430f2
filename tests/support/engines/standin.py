"""What the stand-ins share: the simulated engine, started and served in the test's own loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from workers.sim.driver import Driver
from workers.sim.engine import Engine, StepSums
from workers.sim.events import EventEncoder, EventPublisher
from workers.sim.generation import Generation
from workers.sim.metrics import Metrics
from workers.sim.reader import Ask
from workers.sim.request import Progress
from workers.sim.server import Served, Server, _as_openai_error, _Call
from workers.sim.timing import PROFILES
from workers.sim.tokens import ChatTokenizer, write_model

MODEL = "llama"
BLOCK_TOKENS, BLOCKS, CONTEXT_TOKENS = 16, 96, 1024
SPEED = 5.0


Complete = Callable[[web.Request], Awaitable[web.StreamResponse]]
Handed = Callable[[web.Request, Complete], Awaitable[web.StreamResponse]]
"""Answers a request that names another engine; the second argument is how one alone would."""


@dataclass(frozen=True)
class Parts:
    """What a dialect's server is made of."""

    engine: Engine
    driver: Driver
    metrics: CountedMetrics
    tokenizer: ChatTokenizer
    served: Served


class CountedMetrics(Metrics):
    """The simulated engine's metrics, which also tell when steps have ended."""

    on_steps: Callable[[StepSums], None] | None = None
    generated_tokens = 0

    def observe_progress(self, generation: Generation, progress: Progress) -> None:
        self.generated_tokens += progress.output_tokens - generation.produced_tokens
        super().observe_progress(generation, progress)

    def observe_steps(self, sums: StepSums) -> None:
        super().observe_steps(sums)
        if self.on_steps is not None:
            self.on_steps(sums)


class Generator(Server):
    """The simulated engine's completions, without what only vLLM has, beside others' routes."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.served, parts.tokenizer, parts.driver, parts.metrics)
        self._requests: dict[str, _Call] = {}

    def application(self, *routes: web.RouteDef, handed: Handed | None = None) -> web.Application:
        """What aiohttp serves; `handed` stands before completions that come in two legs."""

        async def completions(request: web.Request) -> web.StreamResponse:
            if handed is None:
                return await self._completions(request)
            return await handed(request, self._completions)

        app = web.Application(middlewares=[_as_openai_error])
        app.add_routes(
            [
                web.post("/v1/completions", completions),
                web.post("/v1/chat/completions", self._chat_completions),
                web.get("/health", self._health),
                *routes,
            ]
        )
        return app

    def abort(self, request: str) -> None:
        """End a request by its id, if it is under way."""
        for generation in self._requests[request].generations if request in self._requests else ():
            self._driver.cancel(generation)
            generation.fail("The request was aborted.")

    def _call(self, request: web.Request, ask: Ask, kind: str) -> _Call:
        call = super()._call(request, replace(ask, return_token_ids=False), kind)
        self._requests[request.headers.get("x-request-id", "")] = call
        return call


def make_parts(directory: Path, events: tuple[EventEncoder, EventPublisher] | None) -> Parts:
    """An engine that answers slowly enough to be caught at it."""
    write_model(directory)
    engine = Engine(PROFILES["laptop"], block_tokens=BLOCK_TOKENS, blocks=BLOCKS, closed_form=False)
    metrics = CountedMetrics(MODEL, engine, SPEED)
    driver = Driver(engine, metrics, speed=SPEED, waiting_max=64, events=events)
    served = Served(MODEL, CONTEXT_TOKENS, {})
    return Parts(engine, driver, metrics, ChatTokenizer(directory), served)


@asynccontextmanager
async def serving(
    app: web.Application, driver: Driver, *more: asyncio.Task[None]
) -> AsyncIterator[str]:
    """Serve on a free port while the context is open; yields the URL."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    tasks = [asyncio.create_task(driver.run()), *more]
    try:
        yield f"http://{host}:{port}"
    finally:
        driver.stop()
        await runner.cleanup()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
