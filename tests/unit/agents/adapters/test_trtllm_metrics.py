"""What iterations add up to, each of which is told once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agents.adapters.protocol import EngineDrafts, EngineUnfit
from agents.adapters.trtllm_metrics import EMPTY_MEANS_IDLE, Cache, Iterations

CACHE = {"maxNumBlocks": 100, "usedNumBlocks": 30, "freeNumBlocks": 70, "tokensPerBlock": 32}


def iteration(number: int, *, active: int = 2, **batch: Any) -> dict[str, Any]:
    return {
        "iter": number,
        "iterLatencyMS": 10.0,
        "numActiveRequests": active,
        "numQueuedRequests": 3,
        "inflightBatchingStats": {"numGenRequests": 2, "numContextRequests": 0, **batch},
        "kvCacheStats": {**CACHE, "reusedBlocks": 4, "missedBlocks": 6},
    }


def answer(*iterations: dict[str, Any]) -> bytes:
    return json.dumps(list(iterations)).encode()


def test_the_last_iteration_is_how_it_is_now() -> None:
    seen = Iterations()
    seen.read(answer(iteration(1, active=9), iteration(2, numQueuedCtxTokens=700)))
    load = seen.load()
    assert seen.cache == Cache(32, 100)
    assert (load.running, load.waiting, load.queued_prefill_tokens) == (2, 3, 700)
    assert (load.used_blocks, load.decode_kv_tokens) == (30, 30 * 32)
    assert (load.cached_tokens, load.queried_tokens) == (4 * 32, 10 * 32)


def test_what_was_done_is_added_up() -> None:
    seen = Iterations()
    seen.read(answer(iteration(1, numCtxTokens=500, numContextRequests=1)))
    seen.read(answer(iteration(2), iteration(3)))
    work = seen.load().work
    assert work is not None
    assert (work.steps, work.prefill_tokens, work.generated_tokens) == (3, 500, 6)
    assert work.gaps_s / work.gaps == pytest.approx(0.01)


def test_drafts_are_added_up_and_accepted_ones_are_tokens() -> None:
    """SD7. Two of two streams were drafted for, four tokens each; three were kept in all."""
    told = {"numDraftTokens": 8, "numAcceptedTokens": 3, "numRequestsWithDraftTokens": 2}
    seen = Iterations()
    plain = iteration(1)
    seen.read(answer(plain))
    before = seen.load().work
    assert before is not None
    assert before.drafts is None
    seen.read(answer({**iteration(2), "specDecodingStats": told}))
    seen.read(answer({**iteration(3), "specDecodingStats": told}))
    work = seen.load().work
    assert work is not None
    assert work.drafts == EngineDrafts(4, 16, 6)
    assert work.generated_tokens == work.gaps + 6


def test_waiting_prompts_are_supposed_to_be_like_those_before() -> None:
    seen = Iterations()
    seen.read(answer(iteration(1, numCtxTokens=500, numContextRequests=2)))
    assert seen.load().queued_prefill_tokens == 3 * 250


def test_it_is_idle_when_it_has_said_nothing_for_a_while_and_not_before() -> None:
    """One empty answer may fall into a long iteration."""
    seen = Iterations()
    seen.read(answer(iteration(1)))
    for _ in range(EMPTY_MEANS_IDLE - 1):
        seen.read(answer())
        assert seen.load().running == 2
    seen.read(answer())
    assert (seen.load().running, seen.load().waiting, seen.load().used_blocks) == (0, 0, 30)


def test_an_engine_that_counts_from_one_again_has_begun_another_life() -> None:
    seen = Iterations()
    seen.read(answer(iteration(7)))
    before = seen.load()
    seen.read(answer(iteration(8)))
    assert not seen.load().is_later_life(before)
    seen.read(answer(iteration(1)))
    assert seen.load().is_later_life(before)


def test_what_cannot_be_read_is_refused() -> None:
    seen = Iterations()
    with pytest.raises(EngineUnfit, match="no iteration"):
        seen.load()
    with pytest.raises(EngineUnfit, match="not what TensorRT-LLM answers"):
        seen.read(b"# HELP vllm:something\n")
