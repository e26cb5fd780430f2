"""The engine under test: asked as a client asks it, and watched as its agent watches it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio

from agents.adapters.protocol import (
    EngineAdapter,
    EngineAway,
    EngineEvent,
    EngineFacts,
    EngineLoad,
)
from agents.live import LiveSet
from agents.translator import Translator
from proto.hashing import BlockHasher, Scope
from proto.kv import Tier
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpResponse, HttpTimeouts

SETTLE_S = 20.0
"""What an engine may take to tell of what it has done."""
POLL_S = 0.05
TIMEOUTS = HttpTimeouts(connect_s=5.0, first_byte_s=120.0, idle_s=60.0)
SECRET = b"conformance"
TOKENS = range(10, 250)
"""Token ids that every model has and that mean nothing special in most."""


class Failed(Exception):
    """The engine does not do it; says what it did instead."""


class Skipped(Exception):
    """The engine does not claim to do it; says what that costs."""


@dataclass(frozen=True)
class Answer:
    """What came of one completion."""

    status: int
    text: str = ""
    reason: str | None = None
    token_ids: tuple[int, ...] = ()
    usage: dict[str, Any] = field(default_factory=dict)
    pieces: int = 0
    done: bool = False
    """A stream that ended with `[DONE]`."""


class Cache:
    """What the engine says that it caches, by our names."""

    def __init__(self, facts: EngineFacts) -> None:
        self.live = LiveSet()
        self.events: list[EngineEvent] = []
        self._news = anyio.Event()
        self._translator = Translator(
            self.live, SECRET, facts.model, facts.block_tokens, facts.total_blocks
        )

    def deliver(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            self.events.append(event)
            self._translator.apply(event)
        self._news.set()

    async def news(self) -> None:
        """Wait for more events."""
        self._news = anyio.Event()
        await self._news.wait()

    def names(self) -> set[int]:
        return {
            int(name) for tier, names in self.live.names() if tier is Tier.GPU for name in names
        }

    def hit_blocks(self, names: Sequence[int]) -> int:
        """How many blocks of a prompt a router would expect to be found."""
        live = self.names()
        missing = (index for index, name in enumerate(names) if name not in live)
        return next(missing, len(names))


class Subject:
    """One engine, for as long as the suite runs."""

    def __init__(
        self,
        url: str,
        http: Http,
        adapter: EngineAdapter,
        rng: random.Random,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.settle_s = settle_s
        self.url = url
        self.adapter = adapter
        self._http = http
        self._rng = rng
        self._facts: EngineFacts | None = None

    @property
    def facts(self) -> EngineFacts:
        assert self._facts is not None, "meet first"
        return self._facts

    async def meet(self) -> None:
        """Find out what it is. Raises `EngineAway`, `EngineUnfit`."""
        self._facts = await self.adapter.probe()
        await self.adapter.load()

    def prompt(self, blocks: int, more: int = 0) -> list[int]:
        """New tokens that no cache has: so many full blocks, and some more."""
        count = blocks * self.facts.block_tokens + more
        return [self._rng.choice(TOKENS) for _ in range(count)]

    def names(self, prompt: Sequence[int], salt: str = "") -> list[int]:
        """What the control plane calls the full blocks of a prompt."""
        scope = Scope(self.facts.model, tenant=salt) if salt else Scope(self.facts.model)
        hasher = BlockHasher(SECRET, scope, self.facts.block_tokens)
        return [int(name) for name in hasher.names(prompt)]

    async def complete(
        self, prompt: Sequence[int], max_tokens: int = 4, **fields: object
    ) -> Answer:
        """A greedy completion, whole."""
        async with self.ask(prompt, max_tokens, fields) as response:
            return _whole(response.status, await response.read())

    async def stream(self, prompt: Sequence[int], max_tokens: int) -> Answer:
        """A greedy completion, streamed."""
        fields = {"stream": True, "stream_options": {"include_usage": True}}
        async with self.ask(prompt, max_tokens, fields) as response:
            return streamed(response.status, await response.read())

    @asynccontextmanager
    async def ask(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        fields: Mapping[str, object],
        request: str = "",
    ) -> AsyncIterator[HttpResponse]:
        """The exchange itself; `request` is the id that a gateway would send."""
        body = {
            "model": self.facts.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        }
        headers = {"content-type": "application/json"}
        if request:
            headers["x-request-id"] = request
            body["rid"] = request
        exchange = self._http.exchange(
            "POST",
            f"{self.url}/v1/completions",
            body=json.dumps(body).encode(),
            headers=headers,
            timeouts=TIMEOUTS,
        )
        async with exchange as response:
            yield response

    async def post(self, path: str) -> int:
        """The status of a POST without a body."""
        try:
            async with self._http.exchange("POST", self.url + path, timeouts=TIMEOUTS) as response:
                await response.read()
                return response.status
        except HttpError as error:
            raise Failed(f"POST {path}: {error}") from error

    async def load(self) -> EngineLoad:
        return await self.adapter.load()

    async def idle(self) -> EngineLoad:
        """Wait until it says that it has nothing to do."""
        return await self.settles(_is_idle, "it never says that it has nothing to do")

    async def settles(self, right: Callable[[EngineLoad], bool], else_: str) -> EngineLoad:
        """Its load, once it is `right`; else `Failed`."""

        load = await self.load()

        async def look() -> bool:
            nonlocal load
            load = await self.load()
            return right(load)

        await self.until(look, lambda: f"{else_}: {load}")
        return load

    async def until(self, condition: Callable[[], Awaitable[bool]], why: Callable[[], str]) -> None:
        """Return when it holds; `Failed` with `why` if it does not within `settle_s`."""
        with anyio.move_on_after(self.settle_s):
            while True:
                try:
                    if await condition():
                        return
                except EngineAway:
                    pass  # a poll that came at a bad moment
                await anyio.sleep(POLL_S)
        raise Failed(f"{why()} (after {self.settle_s:g} s)")

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[Cache]:
        """Its cache, as an agent that has just come hears of it."""
        if not self.facts.kv_events:
            raise Skipped(f"no KV events ({self.facts.why_no_events}): routers can only guess")
        cache = Cache(self.facts)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.adapter.follow, cache.deliver)
            try:
                await self._heard(cache)
                yield cache
            finally:
                tasks.cancel_scope.cancel()

    async def _heard(self, cache: Cache) -> None:
        """Until its events reach us: a subscription takes hold some time after it was made."""

        async def said() -> bool:
            prompt = self.prompt(blocks=1, more=1)
            await self.complete(prompt, max_tokens=1)
            with anyio.move_on_after(1.0):
                while not cache.hit_blocks(self.names(prompt)):
                    await cache.news()
            return bool(cache.hit_blocks(self.names(prompt)))

        await self.until(
            said,
            lambda: (
                f"a prompt's block never comes in its KV events under the name that its tokens "
                f"have; of {len(cache.events)} events the last was {cache.events[-1:]}"
            ),
        )


def _is_idle(load: EngineLoad) -> bool:
    return load.running == 0 and load.waiting == 0


def _whole(status: int, body: bytes) -> Answer:
    if status != 200:
        return Answer(status, text=body.decode(errors="replace")[:300])
    said = json.loads(body)
    choice = said["choices"][0]
    return Answer(
        status,
        choice["text"],
        choice["finish_reason"],
        tuple(choice.get("token_ids") or ()),
        said.get("usage") or {},
    )


def streamed(status: int, body: bytes) -> Answer:
    """What the events of a stream add up to."""
    if status != 200:
        return Answer(status, text=body.decode(errors="replace")[:300])
    text, reason, pieces = "", None, 0
    usage: dict[str, Any] = {}
    tokens: list[int] = []
    events = [line[5:].strip() for line in body.split(b"\n") if line.startswith(b"data:")]
    for event in events:
        if event == b"[DONE]":
            continue
        said = json.loads(event)
        usage = said.get("usage") or usage
        for choice in said.get("choices", ()):
            text += choice.get("text") or ""
            pieces += bool(choice.get("text"))
            tokens += choice.get("token_ids") or ()
            reason = choice.get("finish_reason") or reason
    done = bool(events) and events[-1] == b"[DONE]"
    return Answer(status, text, reason, tuple(tokens), usage, pieces, done)
