"""SGLang as an `EngineAdapter`. By its public contract (0.5), not run.

Its KV events come as vLLM's do (`vllm_stream`), in its own words (`sglang_events`). `/v1/loads`
tells its load in tokens, `/metrics` (with `--enable-metrics`) what it has found in its cache, what
it has made, and how its drafts fare.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from agents.adapters.asking import Asking
from agents.adapters.byitself import ByItself
from agents.adapters.huggingface import find_tokenizer
from agents.adapters.prometheus import samples
from agents.adapters.protocol import (
    Deliver,
    EngineFacts,
    EngineHandoff,
    EngineLoad,
    EngineRefused,
    EngineUnfit,
    EngineWork,
)
from agents.adapters.sglang_drafts import SglangDrafts
from agents.adapters.sglang_events import SglangEvents
from agents.adapters.versions import why_unknown
from agents.adapters.vllm_stream import EventStream, Silence, VllmStream
from proto.wire.ports import Frames, Http
from proto.workers import KvTransfer

PROMPT_TOKENS = "sglang:prompt_tokens_total"
CACHED_TOKENS = "sglang:cached_tokens_total"
RETRACTED = "sglang:num_retracted_requests_total"
REQUESTS = "sglang:num_requests_total"
GENERATED = "sglang:generation_tokens_total"
ACCEPT_LENGTH, ACCEPT_RATE = "sglang:spec_accept_length", "sglang:spec_accept_rate"
RUNNING, QUEUED = "sglang:num_running_reqs", "sglang:num_queue_reqs"
USED_TOKENS = "sglang:num_used_tokens"
FAMILIES = frozenset(
    {PROMPT_TOKENS, CACHED_TOKENS, RETRACTED, REQUESTS, RUNNING, QUEUED, USED_TOKENS}
    | {GENERATED, ACCEPT_LENGTH, ACCEPT_RATE}
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
        self._stream: EventStream = Silence()
        self._drafts = SglangDrafts()

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
            tokenizer=await find_tokenizer(
                self._options.model_directory, info.tokenizer_path or info.model_path
            ),
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
        counted = _counted(await self._ask.text("/metrics"), self._options.rank)
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
            work=self._work(counted),
        )

    def _work(self, counted: Mapping[str, float]) -> EngineWork:
        """Of its steps it tells neither number nor time."""
        gauges = counted[ACCEPT_LENGTH], counted[ACCEPT_RATE]
        return EngineWork(
            steps=0,
            prefill_tokens=_computed(counted),
            generated_tokens=int(counted[GENERATED]),
            gaps=0,
            gaps_s=0.0,
            drafts=self._drafts.take(counted[GENERATED], *gauges),
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
        await self._stream.follow(deliver)

    def recheck(self) -> None:
        """The engine was away: find out soon whether its events are still those of one life."""
        self._stream.recheck()

    def _streams(self, where: _Sockets | None) -> EventStream:
        if where is None:
            return Silence()
        reader = SglangEvents(self._options.rank)
        return VllmStream(self._frames, where.events, where.replay, reader)


def _counted(text: str, rank: int | None) -> Mapping[str, float]:
    """What `/metrics` tells, summed over labels: of all ranks, where they are counted together.

    Gauges are told once for each of the processes of a rank, which all say the same: the greatest.
    """
    counted = dict.fromkeys(FAMILIES, 0.0)
    for family, labels, value in samples(text, FAMILIES):
        if family not in (ACCEPT_LENGTH, ACCEPT_RATE):
            counted[family] += value
        elif rank is None or labels.get("dp_rank", str(rank)) == str(rank):
            counted[family] = max(counted[family], value)
    return counted


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
    return round(load.num_waiting_reqs * _computed(counted) / max(1.0, counted[REQUESTS]))


def _computed(counted: Mapping[str, float]) -> int:
    """Prompt tokens that were not in its cache."""
    return int(counted[PROMPT_TOKENS] - counted[CACHED_TOKENS])
