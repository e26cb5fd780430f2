"""vLLM's `/metrics`: its paged cache, and its load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from agents.adapters.prometheus import samples
from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineUnfit, EngineWork

CACHE_CONFIG = "vllm:cache_config_info"
PROCESS_START = "process_start_time_seconds"
RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
USAGE = "vllm:kv_cache_usage_perc"
PREEMPTIONS = "vllm:num_preemptions_total"
QUERIED = "vllm:prefix_cache_queries_total"
CACHED = "vllm:prefix_cache_hits_total"
PROMPT_TOKENS = "vllm:request_prompt_tokens_sum"
PROMPTS = "vllm:request_prompt_tokens_count"

STEPS = "vllm:iteration_tokens_total_count"
PREFILLED = "vllm:prompt_tokens_total"
GENERATED = "vllm:generation_tokens_total"
GAPS = "vllm:inter_token_latency_seconds_count"
GAPS_S = "vllm:inter_token_latency_seconds_sum"
FIRSTS = "vllm:time_to_first_token_seconds_count"
FIRSTS_S = "vllm:time_to_first_token_seconds_sum"
PROMPTS_S = "vllm:request_prefill_time_seconds_sum"

DRAFTS = "vllm:spec_decode_num_drafts_total"
DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"

DRAFT_FAMILIES = frozenset({DRAFTS, DRAFTED, ACCEPTED})
WORK_FAMILIES = frozenset({STEPS, PREFILLED, GENERATED, GAPS, GAPS_S})
LOAD_FAMILIES = WORK_FAMILIES | DRAFT_FAMILIES | {
    FIRSTS, FIRSTS_S,
    RUNNING, WAITING, USAGE, PREEMPTIONS, QUERIED, CACHED, PROMPT_TOKENS, PROMPTS, PROCESS_START,
    PROMPTS_S,
}  # fmt: skip


class CacheConfig(msgspec.Struct, frozen=True):
    """The paged cache of one engine."""

    block_tokens: int
    total_blocks: int


def read_cache_config(text: str, rank: int | None) -> CacheConfig:
    """Raises `EngineUnfit` if the metrics do not tell."""
    for family, labels, _ in _samples(text, frozenset({CACHE_CONFIG}), rank):
        del family
        try:
            return CacheConfig(int(labels["block_size"]), int(labels["num_gpu_blocks"]))
        except (KeyError, ValueError) as error:
            raise EngineUnfit(f"{CACHE_CONFIG} without a readable {error}") from error
    raise EngineUnfit(f"/metrics has no {CACHE_CONFIG}: is this vLLM, with metrics enabled?")


def read_load(text: str, cache: CacheConfig, rank: int | None) -> EngineLoad:
    """Raises `EngineUnfit` if a family is missing.

    vLLM counts waiting requests and not their tokens: `queued_prefill_tokens` supposes that they
    are like those that have been served, in length and in what the cache had of them.
    """
    values = {family: value for family, _, value in _samples(text, LOAD_FAMILIES, rank)}
    try:
        used_blocks = round(values[USAGE] * cache.total_blocks)
        return EngineLoad(
            running=int(values[RUNNING]),
            waiting=int(values[WAITING]),
            queued_prefill_tokens=round(values[WAITING] * _new_tokens_per_prompt(values)),
            decode_kv_tokens=used_blocks * cache.block_tokens,
            used_blocks=used_blocks,
            preemptions=int(values.get(PREEMPTIONS, 0)),
            cached_tokens=int(values.get(CACHED, 0)),
            queried_tokens=int(values.get(QUERIED, 0)),
            started_s=values.get(PROCESS_START),
            work=_work(values),
        )
    except KeyError as error:
        raise EngineUnfit(f"/metrics has no {error.args[0]}: is this vLLM?") from error
    except (ValueError, OverflowError) as error:  # NaN and infinity are no counts
        raise EngineUnfit(f"/metrics: {error}") from error


def _work(values: Mapping[str, float]) -> EngineWork | None:
    if not values.keys() >= WORK_FAMILIES:
        return None
    return EngineWork(
        steps=int(values[STEPS]),
        prefill_tokens=int(values[PREFILLED] - values.get(CACHED, 0)),
        generated_tokens=int(values[GENERATED]),
        gaps=int(values[GAPS]),
        gaps_s=values[GAPS_S],
        drafts=_drafts(values),
        first_tokens=int(values.get(FIRSTS, 0)),
        first_tokens_s=values.get(FIRSTS_S, 0.0),
        prompts_s=values.get(PROMPTS_S, 0.0),
    )


def _drafts(values: Mapping[str, float]) -> EngineDrafts | None:
    if not values.keys() >= DRAFT_FAMILIES:
        return None
    return EngineDrafts(int(values[DRAFTS]), int(values[DRAFTED]), int(values[ACCEPTED]))


def _new_tokens_per_prompt(values: Mapping[str, float]) -> float:
    prompts, queried = values.get(PROMPTS, 0), values.get(QUERIED, 0)
    if not prompts:
        return 0.0
    missed = 1 - values.get(CACHED, 0) / queried if queried else 1.0
    return values.get(PROMPT_TOKENS, 0) / prompts * missed


def _samples(
    text: str, families: frozenset[str], rank: int | None
) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Samples of some families, without those of other ranks."""
    for family, labels, value in samples(text, families):
        if rank is None or labels.get("engine") in (None, str(rank)):
            yield family, labels, value
