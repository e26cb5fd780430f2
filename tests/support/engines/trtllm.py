"""TensorRT-LLM 1.3 as its documents have it: two queues that are emptied by being read."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.support.engines.standin import (
    BLOCK_TOKENS,
    BLOCKS,
    MODEL,
    Generator,
    Handed,
    Parts,
    make_parts,
    serving,
)
from workers.sim.cache import CacheEvent, Cleared, Removed, RequestId, Stored
from workers.sim.engine import StepSums
from workers.sim.events import EventEncoder, EventFormat, EventPublisher, HashFormat
from workers.sim.request import Sequenced

VERSION = "1.3.0rc29"
ITERATIONS_KEPT = 1000


class TrtllmEvents(EventEncoder):
    """Numbered events of JSON, with a token struct for every token."""

    def __init__(self) -> None:
        super().__init__(BLOCK_TOKENS, EventFormat.MAP, HashFormat.INT)

    def encode(
        self, events: Iterable[CacheEvent], owner: Callable[[RequestId], Sequenced]
    ) -> list[object]:
        wire: list[object] = []
        for event in events:
            match event:
                case Stored():
                    wire.append(_stored(event, owner(event.owner)))
                case Removed(names):
                    wire.append(
                        {"type": "removed", "block_hashes": [_hash(name) for name in names]}
                    )
                case Cleared():
                    wire.append(CREATED)
        return wire


CREATED = {"type": "created", "num_blocks_per_cache_level": [BLOCKS, 0]}


def _hash(name: int) -> int:
    return name & ((1 << 64) - 1)


def _stored(event: Stored, sequence: Sequenced) -> dict[str, object]:
    blocks = []
    for number, name in enumerate(event.names, event.first_block):
        tokens = sequence.tokens[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS]
        blocks.append(
            {
                "type": "stored_block",
                "block_hash": _hash(name),
                "tokens": [
                    {"type": "unique_token", "token_id": token, "token_extra_id": 0}
                    for token in tokens
                ],
                "cache_level": 0,
                "priority": 35,
            }
        )
    parent = None if event.parent is None else _hash(event.parent)
    return {"type": "stored", "parent_hash": parent, "blocks": blocks}


class EventQueue(EventPublisher):
    """Where a publisher would send, events wait to be fetched."""

    def __init__(self) -> None:
        self._number = 0
        self._waiting: list[dict[str, object]] = []
        self.publish([CREATED], 0.0)

    def publish(self, events: list[object], timestamp_s: float) -> None:
        del timestamp_s
        for event in events:
            self._waiting.append({"event_id": self._number, "data": event, "window_size": 1024})
            self._number += 1

    def take(self) -> list[dict[str, object]]:
        taken, self._waiting = self._waiting, []
        return taken


class Trtllm:
    """TensorRT-LLM's own routes."""

    def __init__(
        self, parts: Parts, events: EventQueue, version: str, handed: Handed | None
    ) -> None:
        self._parts = parts
        self._events = events
        self._version = version
        self._iterations: deque[dict[str, object]] = deque(maxlen=ITERATIONS_KEPT)
        self._number = 0
        self.app = Generator(parts).application(
            web.get("/version", self._tell_version),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.get("/health_generate", self._health_generate),
            web.post("/kv_cache_events", self._kv_cache_events),
            handed=handed,
        )

    def count(self, steps: StepSums) -> None:
        """An iteration has ended."""
        load = self._parts.engine.load()
        self._number += 1
        self._iterations.append(
            {
                "iter": self._number,
                "iterLatencyMS": steps.prefill_ms + steps.decode_ms,
                "numActiveRequests": load.running,
                "numQueuedRequests": load.waiting,
                "inflightBatchingStats": {
                    "numContextRequests": int(steps.prefill_tokens > 0),
                    "numGenRequests": steps.decode_batch,
                    "numPausedRequests": 0,
                    "numScheduledRequests": load.running,
                    "numCtxTokens": steps.prefill_tokens,
                    "microBatchId": 0,
                },
                "kvCacheStats": {
                    "maxNumBlocks": load.total_blocks,
                    "freeNumBlocks": load.total_blocks - load.used_blocks,
                    "usedNumBlocks": load.used_blocks,
                    "tokensPerBlock": BLOCK_TOKENS,
                    "reusedBlocks": load.cached_tokens // BLOCK_TOKENS,
                    "missedBlocks": (load.queried_tokens - load.cached_tokens) // BLOCK_TOKENS,
                },
            }
        )

    async def _tell_version(self, request: web.Request) -> web.Response:
        del request
        return web.json_response({"version": self._version})

    async def _models(self, request: web.Request) -> web.Response:
        del request
        card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tensorrt_llm"}
        return web.json_response({"object": "list", "data": [card]})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        told, self._iterations = list(self._iterations), deque(maxlen=ITERATIONS_KEPT)
        return web.json_response(told)

    async def _health_generate(self, request: web.Request) -> web.Response:
        del request
        self.count(StepSums(steps=1))
        return web.Response(text="Generation health check OK")

    async def _kv_cache_events(self, request: web.Request) -> web.Response:
        del request
        return web.json_response(self._events.take())


@asynccontextmanager
async def trtllm(
    directory: Path, version: str = VERSION, handed: Handed | None = None
) -> AsyncIterator[str]:
    """A running stand-in; yields its URL."""
    events = EventQueue()
    parts = make_parts(directory, (TrtllmEvents(), events))
    server = Trtllm(parts, events, version, handed)
    parts.metrics.on_steps = server.count
    async with serving(server.app, parts.driver) as url:
        yield url
