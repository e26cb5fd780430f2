"""TensorRT-LLM (`trtllm-serve`) as an `EngineAdapter`. By its public contract (1.x), not run.

What it has to tell waits in two queues that are emptied by being read: `/metrics`, one entry an
iteration, and `/kv_cache_events`. So it must have one agent and no other reader. Older releases
answer an empty queue only after two seconds.

An engine that has done nothing has no iteration to tell of, not even how many blocks it has; it is
asked for one token then. That also proves that it can make one.
"""

from __future__ import annotations

import logging

import anyio
import msgspec

from agents.adapters.asking import Asking
from agents.adapters.byitself import ByItself
from agents.adapters.huggingface import find_tokenizer
from agents.adapters.protocol import (
    Deliver,
    EngineAway,
    EngineFacts,
    EngineHandoff,
    EngineLoad,
    EngineUnfit,
)
from agents.adapters.trtllm_events import TrtllmEvents
from agents.adapters.trtllm_metrics import Iterations
from agents.adapters.versions import why_unknown
from proto.wire.ports import Http, HttpTimeouts
from proto.workers import KvTransfer

log = logging.getLogger(__name__)

TIMEOUTS = HttpTimeouts(connect_s=1.0, first_byte_s=6.0, idle_s=2.0)
BUSY_POLL_S, QUIET_POLL_S = 0.02, 0.2
"""Between two looks for events: after some were there, and after none was."""
AWAY_S = 1.0


class TrtllmOptions(msgspec.Struct, frozen=True):
    """What an operator says of a TensorRT-LLM that it does not say itself."""

    url: str
    context_tokens: int | None = None
    """The longest prompt and answer, as it was started."""
    model_directory: str | None = None
    max_batched_tokens: int = 8192
    max_running: int = 256
    kv_events: bool = True
    """It was started with a buffer for them (`event_buffer_max_size`)."""
    transfer: KvTransfer | None = None
    """How its blocks go to another engine, where they do."""
    trust_version: bool = False


class _Version(msgspec.Struct):
    version: str


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class TrtllmAdapter:
    """One `trtllm-serve`."""

    def __init__(self, http: Http, options: TrtllmOptions) -> None:
        self._ask = Asking(http, options.url, "TensorRT-LLM", TIMEOUTS)
        self._options = options
        self._iterations = Iterations()
        self._reader: TrtllmEvents | None = None
        self._look = anyio.Event()

    async def probe(self) -> EngineFacts:
        """Ask for all that does not change while the engine lives."""
        options = self._options
        if options.context_tokens is None:
            raise EngineUnfit(
                "TensorRT-LLM does not tell its longest context: set agent.context_tokens to its "
                "--max_seq_len"
            )
        version = (await self._ask.read("/version", _Version)).version
        models = (await self._ask.read("/v1/models", _Models)).data
        if not models:
            raise EngineUnfit("/v1/models lists no model")
        await self._read_iterations()
        if self._iterations.cache is None:
            await self._ask.get("/health_generate")
            await self._read_iterations()
        cache = self._iterations.cache
        if cache is None:
            raise EngineUnfit(
                "/metrics tells of no iteration after a request: start it with "
                "enable_iter_perf_stats: true"
            )
        why = "agent.kv_events is off" if not options.kv_events else ""
        if not why and not options.trust_version:
            why = why_unknown("trtllm", version)
        self._reader = None if why else TrtllmEvents(cache.block_tokens)  # of this life only
        return EngineFacts(
            model=models[0].id,
            version=version,
            context_tokens=options.context_tokens,
            block_tokens=cache.block_tokens,
            total_blocks=cache.total_blocks,
            max_batched_tokens=options.max_batched_tokens,
            max_running=options.max_running,
            tokenizer=await find_tokenizer(options.model_directory, None),
            kv_events=not why,
            why_no_events=why,
            transfer=options.transfer,
        )

    @property
    def handoff(self) -> EngineHandoff:
        """As for any engine that lets go by itself."""
        return ByItself(self.cancel)

    async def load(self) -> EngineLoad:
        """What it is busy with now; only after a `probe`."""
        await self._ask.get("/health")
        await self._read_iterations()
        return self._iterations.load()

    async def cancel(self, request: str) -> bool:
        """It looks every second whether who asked is still there, and knows no other way."""
        del request
        return False

    async def follow(self, deliver: Deliver) -> None:
        """Ask for KV events again and again; only after a `probe`."""
        reader = self._reader
        if reader is None:
            await anyio.sleep_forever()
            return
        while True:
            pause_s = AWAY_S
            try:
                events = reader.read(await self._ask.post("/kv_cache_events"))
                pause_s = BUSY_POLL_S if events else QUIET_POLL_S
                if events:
                    deliver(events)
            except EngineAway as error:
                log.debug("no KV events: %s", error)
            self._look = anyio.Event()
            with anyio.move_on_after(pause_s):
                await self._look.wait()

    def recheck(self) -> None:
        """The engine was away: its next event tells whether it has begun anew."""
        self._look.set()

    async def _read_iterations(self) -> None:
        self._iterations.read(await self._ask.get("/metrics"))
