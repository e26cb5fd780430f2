from __future__ import annotations

from pathlib import Path

import pytest

from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineUnfit
from agents.adapters.vllm_metrics import CacheConfig, read_cache_config, read_load

CACHE = CacheConfig(block_tokens=32, total_blocks=1024)


def text(rank: int = 0, **values: float) -> str:
    families = {
        "num_requests_running": 3.0,
        "num_requests_waiting": 2.0,
        "kv_cache_usage_perc": 0.25,
        **values,
    }
    lines = [
        f'vllm:{family}{{engine="{rank}",model_name="a \\"b\\" 1"}} {value}'
        for family, value in families.items()
    ]
    config = f'engine="{rank}",block_size="32",num_gpu_blocks="{1024 + rank}"'
    return "\n".join(["# TYPE x gauge", *lines, f"vllm:cache_config_info{{{config}}} 1.0", ""])


def test_what_is_missing_is_nothing() -> None:
    assert read_load(text(), CACHE, None) == EngineLoad(
        running=3,
        waiting=2,
        queued_prefill_tokens=0,
        decode_kv_tokens=256 * 32,
        used_blocks=256,
        preemptions=0,
        cached_tokens=0,
        queried_tokens=0,
        started_s=None,
    )


def test_waiting_prompts_are_taken_for_average_ones() -> None:
    load = read_load(
        text(
            request_prompt_tokens_sum=3000,
            request_prompt_tokens_count=10,
            prefix_cache_queries_total=3000,
            prefix_cache_hits_total=1000,
        ),
        CACHE,
        None,
    )
    assert load.queued_prefill_tokens == 2 * 300 * 2 / 3


def test_each_rank_reads_its_own_samples() -> None:
    both = text(0) + text(1, num_requests_running=7)
    assert [read_load(both, CACHE, rank).running for rank in (0, 1)] == [3, 7]
    assert [read_cache_config(both, rank).total_blocks for rank in (0, 1)] == [1024, 1025]


@pytest.mark.parametrize(
    "bad",
    [
        "",
        text().replace("vllm:num_requests_running", "other:num_requests_running"),
        text(num_requests_running=float("nan")),
        text(kv_cache_usage_perc=float("inf")),
    ],
)
def test_metrics_of_something_else_are_refused(bad: str) -> None:
    with pytest.raises(EngineUnfit, match="/metrics"):
        read_load(bad, CACHE, None)


@pytest.mark.parametrize("value", ["None", ""])
def test_a_cache_of_unknown_size_is_refused(value: str) -> None:
    with pytest.raises(EngineUnfit, match="cache_config_info"):
        read_cache_config(text().replace('"1024"', f'"{value}"'), None)
    with pytest.raises(EngineUnfit, match="is this vLLM"):
        read_cache_config("up 1", None)


def test_a_later_life_is_told_by_its_start_or_by_counters_that_fell() -> None:
    def life(started_s: float | None, queried_tokens: int) -> EngineLoad:
        return EngineLoad(0, 0, 0, 0, 0, 0, 0, queried_tokens, started_s)

    assert life(2.0, 50).is_later_life(life(1.0, 40))
    assert life(None, 30).is_later_life(life(None, 40))
    assert not life(1.0, 50).is_later_life(life(1.0, 40))
    assert not life(None, 40).is_later_life(life(None, 40))


@pytest.mark.data
def test_a_recording_of_vllm_0_32(shared_data: Path) -> None:
    recorded = (shared_data / "vllm" / "metrics_under_load.prom").read_text()
    assert read_cache_config(recorded, 0) == CACHE
    load = read_load(recorded, CACHE, 0)
    assert (load.running, load.waiting, load.used_blocks) == (12, 0, 156)
    assert (load.cached_tokens, load.queried_tokens) == (15_328, 58_547)
    assert load.started_s == 1.79542903982e9


def test_drafts_are_read_where_an_engine_speculates() -> None:
    work = {
        "iteration_tokens_total_count": 9.0,
        "prompt_tokens_total": 100.0,
        "generation_tokens_total": 50.0,
        "inter_token_latency_seconds_count": 40.0,
        "inter_token_latency_seconds_sum": 2.0,
    }
    plain = read_load(text(0, **work), CACHE, None).work
    assert plain is not None
    assert plain.drafts is None
    drafting = read_load(
        text(
            0,
            **work,
            spec_decode_num_drafts_total=20,
            spec_decode_num_draft_tokens_total=100,
            spec_decode_num_accepted_tokens_total=31,
        ),
        CACHE,
        None,
    ).work
    assert drafting is not None
    assert drafting.drafts == EngineDrafts(20, 100, 31)
