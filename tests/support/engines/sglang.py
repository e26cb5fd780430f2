"""SGLang 0.5.23 as its documents have it: `/server_info`, `/v1/loads`, radix cache events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from controlplane.local.ports import free_ports
from tests.support.engines.standin import (
    BLOCK_TOKENS,
    BLOCKS,
    CONTEXT_TOKENS,
    MODEL,
    Generator,
    Handed,
    Parts,
    make_parts,
    serving,
)
from workers.sim.cache import CacheEvent, Cleared, Removed, RequestId, Stored
from workers.sim.events import (
    EventEncoder,
    EventFormat,
    EventPublisher,
    HashFormat,
)
from workers.sim.request import Sequenced

VERSION = "0.5.23"
OLDER = "0.5.3"
"""Had other names for some of it."""
SIGN = 1 << 63
ACCEPT_LENGTH, ACCEPT_RATE = 3.0, 0.5
"""What it says of its drafts; whether its answers come by drafts makes no difference to them."""


class SglangEvents(EventEncoder):
    """One event a page, signed hashes, labelled salts; an evicted node is one event."""

    def __init__(self) -> None:
        super().__init__(BLOCK_TOKENS, EventFormat.MAP, HashFormat.INT)

    def encode(
        self, events: Iterable[CacheEvent], owner: Callable[[RequestId], Sequenced]
    ) -> list[object]:
        wire: list[object] = []
        for event in events:
            match event:
                case Stored():
                    wire += self._pages(event, owner(event.owner))
                case Removed(names):
                    hashes = [_signed(name) for name in names]
                    removed = {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU"}
                    wire.append(removed)
                case Cleared():
                    wire.append({"type": "AllBlocksCleared"})
        return wire

    def _pages(self, event: Stored, sequence: Sequenced) -> Iterator[dict[str, object]]:
        parent = event.parent
        for number, name in enumerate(event.names, event.first_block):
            tokens = sequence.tokens[number * BLOCK_TOKENS : (number + 1) * BLOCK_TOKENS]
            yield {
                "type": "BlockStored",
                "block_hashes": [_signed(name)],
                "parent_block_hash": None if parent is None else _signed(parent),
                "token_ids": list(tokens),
                "block_size": BLOCK_TOKENS,
                "lora_id": None,
                "medium": "GPU",
                "cache_salt": sequence.cache_salt,
                "session_id": None,
                "lora_name": None,
            }
            parent = name


def _signed(name: int) -> int:
    low = name & (2 * SIGN - 1)
    return low - 2 * SIGN if low >= SIGN else low


class Sglang:
    """SGLang's own routes."""

    def __init__(
        self, parts: Parts, events: int, replay: int, version: str, handed: Handed | None
    ) -> None:
        self._parts = parts
        self._ports = (events, replay)
        self._version = version
        self._generator = Generator(parts)
        told = [
            web.get("/server_info", self._server_info),
            web.get("/v1/loads", self._loads),
        ]
        if version.startswith(OLDER):
            told = [web.get("/get_server_info", self._server_info)]
        self.app = self._generator.application(
            *told,
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
            web.post("/flush_cache", self._flush_cache),
            web.post("/abort_request", self._abort_request),
            handed=handed,
        )

    async def _server_info(self, request: web.Request) -> web.Response:
        del request
        events, replay = self._ports
        return web.json_response(
            {
                "version": self._version,
                "model_path": str(self._parts.tokenizer.directory),
                "tokenizer_path": str(self._parts.tokenizer.directory),
                "served_model_name": MODEL,
                "page_size": BLOCK_TOKENS,
                "context_length": None,
                "max_total_num_tokens": BLOCKS * BLOCK_TOKENS,
                "max_running_requests": self._parts.engine.profile.max_num_seqs,
                "chunked_prefill_size": self._parts.engine.profile.max_num_batched_tokens,
                "max_prefill_tokens": 16384,
                "dp_size": 1,
                "disaggregation_mode": "null",
                "kv_events": {
                    "endpoint_host": "*",
                    "endpoint_port_base": events,
                    "replay_endpoint_port_base": replay,
                    "topic": "",
                    "block_size": BLOCK_TOKENS,
                    "dp_size": 1,
                },
                "internal_states": [{}],
            }
        )

    async def _models(self, request: web.Request) -> web.Response:
        del request
        card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sglang", "root": MODEL}
        card |= {"parent": None, "max_model_len": CONTEXT_TOKENS}
        return web.json_response({"object": "list", "data": [card]})

    async def _loads(self, request: web.Request) -> web.Response:
        assert request.query["include"] == "core"
        load = self._parts.engine.load()
        used = load.used_blocks * BLOCK_TOKENS
        core = {
            "timestamp": 1791417180.1,
            "dp_rank": 0,
            "num_running_reqs": load.running,
            "num_waiting_reqs": load.waiting,
            "num_waiting_uncached_tokens": load.queued_prefill_tokens,
            "num_used_tokens": used,
            "num_total_tokens": used + load.queued_prefill_tokens,
            "max_total_num_tokens": BLOCKS * BLOCK_TOKENS,
            "max_running_requests": self._parts.engine.profile.max_num_seqs,
            "token_usage": used / (BLOCKS * BLOCK_TOKENS),
            "gen_throughput": 41.5,
            "cache_hit_rate": 0.5,
            "utilization": 0.2,
        }
        return web.json_response({"timestamp": "", "version": self._version, "loads": [core]})

    async def _metrics(self, request: web.Request) -> web.Response:
        del request
        load = self._parts.engine.load()
        label = f'model_name="{MODEL}",engine_type="unified",tp_rank="0",pp_rank="0"'
        lines = [
            f"sglang:prompt_tokens_total{{{label}}} {float(load.queried_tokens)}",
            f'sglang:cached_tokens_total{{{label},cache_source="device"}} {load.cached_tokens}.0',
            f'sglang:cached_tokens_total{{{label},cache_source="host"}} 0.0',
            f"sglang:num_retracted_requests_total{{{label}}} {load.preemptions}.0",
            f"sglang:num_running_reqs{{{label}}} {load.running}.0",
            f"sglang:num_queue_reqs{{{label}}} {load.waiting}.0",
            f"sglang:num_used_tokens{{{label}}} {load.used_blocks * BLOCK_TOKENS}.0",
            f"sglang:generation_tokens_total{{{label}}} {self._parts.metrics.generated_tokens}.0",
            f"sglang:spec_accept_length{{{label}}} {ACCEPT_LENGTH}",
            f"sglang:spec_accept_rate{{{label}}} {ACCEPT_RATE}",
        ]
        return web.Response(text="\n".join(lines) + "\n")

    async def _flush_cache(self, request: web.Request) -> web.Response:
        del request
        return web.Response(status=200 if self._parts.driver.reset_cache() else 400)

    async def _abort_request(self, request: web.Request) -> web.Response:
        self._generator.abort((await request.json())["rid"])
        return web.Response()


@asynccontextmanager
async def sglang(
    directory: Path, version: str = VERSION, handed: Handed | None = None
) -> AsyncIterator[str]:
    """A running stand-in; yields its URL."""
    events, replay = free_ports(2)
    publisher = EventPublisher(f"tcp://127.0.0.1:{events}", f"tcp://127.0.0.1:{replay}", "")
    parts = make_parts(directory, (SglangEvents(), publisher))
    replaying = asyncio.create_task(publisher.serve_replay())
    try:
        async with serving(
            Sglang(parts, events, replay, version, handed).app, parts.driver, replaying
        ) as url:
            yield url
    finally:
        publisher.close()
