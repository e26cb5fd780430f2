"""SGLang as an `EngineAdapter`. By its public contract (0.5), not run.

Its KV events come as vLLM's do (`vllm_stream`), in its own words (`sglang_events`). `/v1/loads`
tells its load in tokens, `/metrics` (with `--enable-metrics`) what it has found in its cache.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import msgspec

from agents.adapters.asking import Asking
from agents.adapters.byitself import ByItself
from agents.adapters.huggingface import read_tokenizer
from agents.adapters.prometheus import samples
from agents.adapters.protocol import (
    Deliver,
    EngineFacts,
    EngineHandoff,
    EngineLoad,
    EngineRefused,
    EngineUnfit,
    Tokenizer,
)
from agents.adapters.sglang_events import SglangEvents
from agents.adapters.versions import why_unknown
from agents.adapters.vllm_stream import VllmStream
from proto.wire.ports import Frames, Http
from proto.workers import KvTransfer

log = logging.getLogger(__name__)

PROMPT_TOKENS = "sglang:prompt_tokens_total"
CACHED_TOKENS = "sglang:cached_tokens_total"
RETRACTED = "sglang:num_retracted_requests_total"
REQUESTS = "sglang:num_requests_total"
RUNNING, QUEUED = "sglang:num_running_reqs", "sglang:num_queue_reqs"
USED_TOKENS = "sglang:num_used_tokens"
FAMILIES = frozenset(
    {PROMPT_TOKENS, CACHED_TOKENS, RETRACTED, REQUESTS, RUNNING, QUEUED, USED_TOKENS}
)


class SglangOptions(msgspec.Struct, frozen=True):
    """What an operator says of an SGLang that it does not say itself."""

    url: str
    events: str | None = None
    """This rank's PUB socket; None: where it says that it is."""
    replay: str | None = None
    rank: int | None = None
    model_directory: str | None = None
    kv_events: bool = True
    transfer: KvTransfer | None = None
    """How its blocks go to another engine, where they do."""
    trust_version: bool = False


class _Events(msgspec.Struct):
    """Where it publishes, if it does."""

    endpoint_host: str
    endpoint_port_base: int
    replay_endpoint_port_base: int | None = None


class _Info(msgspec.Struct):
    version: str
    max_total_num_tokens: int
    page_size: int = 1
    served_model_name: str | None = None
    model_path: str | None = None
    tokenizer_path: str | None = None
    max_running_requests: int | None = None
    chunked_prefill_size: int | None = None
    max_prefill_tokens: int | None = None
    kv_events: _Events | None = None


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Load(msgspec.Struct):
    num_running_reqs: int = 0
    num_waiting_reqs: int = 0
    num_used_tokens: int = 0
    num_waiting_uncached_tokens: int | None = None
    dp_rank: int = 0


class _Loads(msgspec.Struct):
    loads: list[_Load]


class _Sockets(msgspec.Struct, frozen=True):
    events: str
    replay: str | None


class SglangAdapter:
    """One SGLang server, or one data-parallel rank of it."""

    def __init__(self, http: Http, frames: Frames, options: SglangOptions) -> None:
        self._ask = Asking(http, options.url, "SGLang")
        self._frames = frames
        self._options = options
        self._page_tokens = 1
        self._where: _Sockets | None = None
        self._stream: VllmStream | None = None

    async def probe(self) -> EngineFacts:
        """Ask for all that does not change while the engine lives."""
        info = await self._info()
        models = (await self._ask.read("/v1/models", _Models)).data
        if not models or models[0].max_model_len is None:
            raise EngineUnfit("/v1/models does not tell a model and its max_model_len")
        self._page_tokens = info.page_size
        where, why = _events_of(info, self._options)
        if where != self._where:
            self._where = where
            self._stream = self._streams(where)
        return EngineFacts(
            model=models[0].id,
            version=info.version,
            context_tokens=models[0].max_model_len,
            block_tokens=info.page_size,
            total_blocks=info.max_total_num_tokens // info.page_size,
            max_batched_tokens=_batch_tokens(info),
            max_running=info.max_running_requests or 256,
            tokenizer=await self._tokenizer(info),
            kv_events=where is not None,
            why_no_events=why,
            transfer=self._options.transfer,
        )

    @property
    def handoff(self) -> EngineHandoff:
        """As for any engine that lets go by itself."""
        return ByItself(self.cancel)

    async def load(self) -> EngineLoad:
        """What it is busy with now; only after a `probe`."""
        await self._ask.get("/health")
        counted = dict.fromkeys(FAMILIES, 0.0)
        for family, _, value in samples(await self._ask.text("/metrics"), FAMILIES):
            counted[family] += value
        mine = await self._load_of_rank(self._options.rank or 0, counted)
        return EngineLoad(
            running=mine.num_running_reqs,
            waiting=mine.num_waiting_reqs,
            queued_prefill_tokens=_queued(mine, counted),
            decode_kv_tokens=mine.num_used_tokens,
            used_blocks=-(-mine.num_used_tokens // self._page_tokens),
            preemptions=int(counted[RETRACTED]),
            cached_tokens=int(counted[CACHED_TOKENS]),
            queried_tokens=int(counted[PROMPT_TOKENS]),
            started_s=None,
        )

    async def _info(self) -> _Info:
        try:
            return await self._ask.read("/server_info", _Info)
        except EngineRefused:
            return await self._ask.read("/get_server_info", _Info)  # as it was called before

    async def _load_of_rank(self, rank: int, counted: Mapping[str, float]) -> _Load:
        try:
            loads = (await self._ask.read("/v1/loads?include=core", _Loads)).loads
        except EngineRefused:  # older ones have gauges only
            running, waiting, used = (int(counted[name]) for name in (RUNNING, QUEUED, USED_TOKENS))
            return _Load(running, waiting, used)
        mine = next((load for load in loads if load.dp_rank == rank), None)
        if mine is None:
            raise EngineUnfit(f"/v1/loads tells of no data-parallel rank {rank}")
        return mine

    async def cancel(self, request: str) -> bool:
        """By its `rid`, which a request must have been given as its id."""
        await self._ask.post("/abort_request", {"rid": request})
        return True

    async def follow(self, deliver: Deliver) -> None:
        """Deliver KV events, if there are any; only after a `probe`."""
        if self._stream is None:
            await anyio.sleep_forever()
        else:
            await self._stream.follow(deliver)

    def recheck(self) -> None:
        """The engine was away: find out soon whether its events are still those of one life."""
        if self._stream is not None:
            self._stream.recheck()

    def _streams(self, where: _Sockets | None) -> VllmStream | None:
        if where is None:
            return None
        reader = SglangEvents(self._options.rank)
        return VllmStream(self._frames, where.events, where.replay, reader)

    async def _tokenizer(self, info: _Info) -> Tokenizer | None:
        place = self._options.model_directory or info.tokenizer_path or info.model_path
        if place is None or not Path(place).is_absolute():
            log.warning(
                "no tokenizer for routing: the engine names its model %r, which is not a path; "
                "set agent.model_directory",
                place,
            )
            return None
        return await anyio.to_thread.run_sync(read_tokenizer, Path(place))


def _events_of(info: _Info, options: SglangOptions) -> tuple[_Sockets | None, str]:
    """Where this rank's events are, or why none are followed."""
    if not options.kv_events:
        return None, "agent.kv_events is off"
    unknown = "" if options.trust_version else why_unknown("sglang", info.version)
    if unknown:
        return None, unknown
    if options.events is not None:
        return _Sockets(options.events, options.replay), ""
    told = info.kv_events
    if told is None:
        return None, "it was started without --kv-events-config, or is too old to tell where"
    anywhere = told.endpoint_host in ("*", "0.0.0.0", "")
    host = urlsplit(options.url).hostname if anywhere else told.endpoint_host
    rank, base = options.rank or 0, told.replay_endpoint_port_base
    replay = None if base is None else f"tcp://{host}:{base + rank}"
    return _Sockets(f"tcp://{host}:{told.endpoint_port_base + rank}", replay), ""


def _batch_tokens(info: _Info) -> int:
    """Of one step; a chunk size of -1 means that prompts are not cut up."""
    chunk = info.chunked_prefill_size
    return chunk if chunk and chunk > 0 else info.max_prefill_tokens or 8192


def _queued(load: _Load, counted: Mapping[str, float]) -> int:
    """As it says; before it did, waiting prompts are supposed to be like those before them."""
    if load.num_waiting_uncached_tokens is not None:
        return load.num_waiting_uncached_tokens
    new_tokens = counted[PROMPT_TOKENS] - counted[CACHED_TOKENS]
    return round(load.num_waiting_reqs * new_tokens / max(1.0, counted[REQUESTS]))
