"""TensorRT-LLM's `/metrics`: what each iteration did, added up to what an agent tells. Pure."""

from __future__ import annotations

import msgspec

from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineUnfit, EngineWork

EMPTY_MEANS_IDLE = 4
"""Answers in a row. One alone may fall into a long iteration."""


class _Batch(msgspec.Struct, rename="camel"):
    num_context_requests: int = 0
    num_gen_requests: int = 0
    num_paused_requests: int = 0
    num_ctx_tokens: int = 0
    num_queued_ctx_tokens: int | None = None
    num_gen_kv_tokens: int | None = None


class _Cache(msgspec.Struct, rename="camel"):
    max_num_blocks: int
    used_num_blocks: int
    tokens_per_block: int
    reused_blocks: int = 0
    missed_blocks: int = 0


class _Drafts(msgspec.Struct, rename="camel"):
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_requests_with_draft_tokens: int = 0


class _Iteration(msgspec.Struct, rename="camel"):
    iter: int
    num_active_requests: int = 0
    num_queued_requests: int = 0
    iter_latency_ms: float = msgspec.field(name="iterLatencyMS", default=0.0)
    inflight_batching_stats: _Batch = msgspec.field(default_factory=_Batch)
    kv_cache_stats: _Cache | None = None
    spec_decoding_stats: _Drafts | None = None


class Cache(msgspec.Struct, frozen=True):
    """Its paged cache."""

    block_tokens: int
    total_blocks: int


_answer = msgspec.json.Decoder(list[_Iteration])


class Iterations:
    """One engine's iterations so far. Each is told once, so what they add up to is kept here."""

    def __init__(self) -> None:
        self.cache: Cache | None = None
        self._last: _Iteration | None = None
        self._empty = EMPTY_MEANS_IDLE
        self._forget()

    def read(self, payload: bytes) -> None:
        """Take one answer; it may tell of none. Raises `EngineUnfit`."""
        try:
            told = _answer.decode(payload)
        except msgspec.DecodeError as error:
            raise EngineUnfit(f"/metrics is not what TensorRT-LLM answers: {error}") from error
        self._empty = 0 if told else self._empty + 1
        for iteration in told:
            self._add(iteration)

    def load(self) -> EngineLoad:
        """As of the last iteration. Raises `EngineUnfit` before there was one."""
        last, cache = self._last, self.cache
        if last is None or last.kv_cache_stats is None or cache is None:
            raise EngineUnfit("/metrics has told of no iteration and its kvCacheStats")
        idle = self._empty >= EMPTY_MEANS_IDLE
        batch, blocks = last.inflight_batching_stats, last.kv_cache_stats
        waiting = 0 if idle else last.num_queued_requests
        queued = batch.num_queued_ctx_tokens
        if queued is None:
            queued = round(waiting * self._prefill_tokens / max(1, self._prompts))
        held = blocks.used_num_blocks * cache.block_tokens
        tokens_looked_up = (blocks.reused_blocks + blocks.missed_blocks) * cache.block_tokens
        return EngineLoad(
            running=0 if idle else last.num_active_requests,
            waiting=waiting,
            queued_prefill_tokens=0 if idle else queued,
            decode_kv_tokens=held if batch.num_gen_kv_tokens is None else batch.num_gen_kv_tokens,
            used_blocks=blocks.used_num_blocks,
            preemptions=self._paused,
            cached_tokens=blocks.reused_blocks * cache.block_tokens,
            queried_tokens=tokens_looked_up,
            started_s=self._life,
            work=EngineWork(
                steps=self._steps,
                prefill_tokens=self._prefill_tokens,
                generated_tokens=self._gaps + (self._drafts.accepted_tokens if self._drafts else 0),
                gaps=self._gaps,
                gaps_s=self._gaps_s,
                drafts=self._drafts,
            ),
        )

    def _forget(self, life: float = 0.0) -> None:
        self._life = life  # it does not tell when it started: a number that changes will do
        self._steps = self._prefill_tokens = self._prompts = self._gaps = self._paused = 0
        self._gaps_s = 0.0
        self._drafts: EngineDrafts | None = None

    def _add(self, iteration: _Iteration) -> None:
        if self._last is not None and iteration.iter <= self._last.iter:
            self._forget(self._life + 1)  # it counts from its start
        batch = iteration.inflight_batching_stats
        paused_before = self._last.inflight_batching_stats.num_paused_requests if self._last else 0
        self._last = iteration
        self._steps += 1
        self._prefill_tokens += batch.num_ctx_tokens
        self._prompts += batch.num_context_requests
        self._paused += max(0, batch.num_paused_requests - paused_before)
        # Every stream that decodes gets one token and its accepted drafts, and waits one iteration.
        self._gaps += batch.num_gen_requests
        self._gaps_s += batch.num_gen_requests * iteration.iter_latency_ms / 1000
        if iteration.spec_decoding_stats is not None:
            did, before = iteration.spec_decoding_stats, self._drafts or EngineDrafts(0, 0, 0)
            self._drafts = EngineDrafts(
                before.verifications + did.num_requests_with_draft_tokens,
                before.drafted_tokens + did.num_draft_tokens,
                before.accepted_tokens + did.num_accepted_tokens,
            )
        if iteration.kv_cache_stats is not None:
            blocks = iteration.kv_cache_stats
            self.cache = Cache(blocks.tokens_per_block, blocks.max_num_blocks)
