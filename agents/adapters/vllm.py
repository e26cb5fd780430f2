"""vLLM, and whatever looks like it from outside, as an `EngineAdapter`."""

from __future__ import annotations

import math

import anyio
import msgspec

from agents.adapters.asking import Asking
from agents.adapters.byitself import ByItself
from agents.adapters.huggingface import find_tokenizer
from agents.adapters.protocol import (
    Deliver,
    EngineFacts,
    EngineHandoff,
    EngineLoad,
    EngineRefused,
    EngineUnfit,
)
from agents.adapters.versions import why_unknown
from agents.adapters.vllm_events import VllmEvents
from agents.adapters.vllm_metrics import CacheConfig, read_cache_config, read_load
from agents.adapters.vllm_stream import EventStream, Silence, VllmStream
from proto.wire.ports import Frames, Http
from proto.workers import KvTransfer

ADAPTERS_S = 10.0
"""How often it is asked for its LoRA adapters, which may come and go while it runs."""
MAX_BATCHED_TOKENS, MAX_RUNNING = 8192, 256
"""vLLM's defaults on a GPU server; it does not tell what it runs with."""


class VllmOptions(msgspec.Struct, frozen=True):
    """What an operator says of a vLLM that it does not say itself."""

    url: str
    events: str | None = None
    """Its PUB socket, None where KV events are off."""
    replay: str | None = None
    rank: int | None = None
    """The data-parallel rank that is meant, where there are several."""
    model_directory: str | None = None
    """Where the tokenizer is, if not where vLLM says that the model is."""
    max_batched_tokens: int = MAX_BATCHED_TOKENS
    max_running: int = MAX_RUNNING
    trust_version: bool = False
    """Follow the events of a release that is not known."""
    transfer: KvTransfer | None = None
    """How its KV connector was set up, where there is one: vLLM does not tell."""


class _Model(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


class _Version(msgspec.Struct):
    version: str


class VllmAdapter:
    """One vLLM server, or one data-parallel rank of it."""

    def __init__(self, http: Http, frames: Frames, options: VllmOptions) -> None:
        self._ask = Asking(http, options.url, "vLLM")
        self._options = options
        self._cache: CacheConfig | None = None
        self._lora: tuple[str, ...] = ()
        self._lora_read_s = -math.inf
        self._stream = (
            VllmStream(frames, options.events, options.replay, VllmEvents(options.rank))
            if options.events
            else None
        )
        self._followed: EventStream = Silence()  # until it has been probed

    async def probe(self) -> EngineFacts:
        """Ask for all that does not change while the engine lives."""
        model = await self._model()
        version = (await self._ask.read("/version", _Version)).version
        self._cache = read_cache_config(await self._ask.text("/metrics"), self._options.rank)
        why = "no events endpoint is set"
        if self._stream is not None:
            why = "" if self._options.trust_version else why_unknown("vllm", version)
        self._followed = Silence() if why or self._stream is None else self._stream
        if model.max_model_len is None:
            raise EngineUnfit("/v1/models does not tell max_model_len: is this vLLM?")
        return EngineFacts(
            model=model.id,
            version=version,
            context_tokens=model.max_model_len,
            block_tokens=self._cache.block_tokens,
            total_blocks=self._cache.total_blocks,
            max_batched_tokens=self._options.max_batched_tokens,
            max_running=self._options.max_running,
            tokenizer=await find_tokenizer(self._options.model_directory, model.root),
            kv_events=not why,
            why_no_events=why,
            transfer=self._options.transfer,
        )

    @property
    def handoff(self) -> EngineHandoff:
        """It lets go by itself, and can be told to stop."""
        return ByItself(self.cancel)

    async def load(self) -> EngineLoad:
        """What it is busy with now; only after a `probe`."""
        assert self._cache is not None, "probe first"
        await self._ask.get("/health")  # the metrics outlive an engine core that has died
        if anyio.current_time() >= self._lora_read_s + ADAPTERS_S:
            await self._model()
        load = read_load(await self._ask.text("/metrics"), self._cache, self._options.rank)
        return msgspec.structs.replace(load, adapters=self._lora)

    async def cancel(self, request: str) -> bool:
        """It numbers the prompts of a completion, and has another name for a chat.

        It must have been started with `--enable-scale-out`.
        """
        names = [f"cmpl-{request}-0", f"chatcmpl-{request}"]
        try:
            await self._ask.post("/inference/v1/abort_requests", {"request_ids": names})
        except EngineRefused:
            return False
        return True

    async def follow(self, deliver: Deliver) -> None:
        """Deliver KV events, if there are any that can be understood."""
        await self._followed.follow(deliver)

    def recheck(self) -> None:
        """The engine was away: find out soon whether its events are still those of one life."""
        self._followed.recheck()

    async def _model(self) -> _Model:
        """The base model; adapters are listed too, each with its parent."""
        models = await self._ask.read("/v1/models", _Models)
        base = [model for model in models.data if model.parent is None]
        if not base:
            raise EngineUnfit("/v1/models lists no model")
        self._lora = tuple(sorted(model.id for model in models.data if model.parent is not None))
        self._lora_read_s = anyio.current_time()
        return base[0]
