"""The engine's rules, one by one, with durations worked out by hand."""

from __future__ import annotations

import pytest

from workers.sim.cache import Cleared, Removed, Stored
from workers.sim.engine import Engine
from workers.sim.request import ProgressKind, Request
from workers.sim.timing import LAPTOP, Profile, StepCost

FIRST, FINISHED = ProgressKind.FIRST_TOKEN, ProgressKind.FINISHED

COST = StepCost(
    decode_base_ms=10.0,
    decode_sequence_ms=1.0,
    decode_kv_token_ms=0.1,
    prefill_floor_ms=0.0,
    prefill_base_ms=20.0,
    prefill_token_ms=1.0,
    prefill_knee_token_ms=0.0,
    attention_pair_ms=0.0,
)


def engine(
    *, blocks: int = 100, batched: int = 64, seqs: int = 8, closed_form: bool = True
) -> Engine:
    profile = Profile("test", 0, COST, batched, seqs)
    return Engine(profile, block_tokens=4, blocks=blocks, closed_form=closed_form)


def run_out(engine: Engine) -> dict[tuple[object, ProgressKind], float]:
    """Run until idle: when what happened to whom."""
    times: dict[tuple[object, ProgressKind], float] = {}
    while (next_s := engine.next_event_s()) is not None:
        for p in engine.advance(next_s):
            times[p.id, p.kind] = p.time_s
    return times


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_lone_request_takes_what_its_steps_take(closed_form: bool) -> None:
    alone = engine(closed_form=closed_form)
    alone.submit(Request("a", 10, [], 4), 5.0)
    times = run_out(alone)
    # 20 + 10 tokens; then three decode steps over 11, 12 and 13 tokens of KV.
    assert times["a", FIRST] == pytest.approx(5.030)
    assert times["a", FINISHED] == pytest.approx(5.030 + 3 * 0.011 + (1.1 + 1.2 + 1.3) / 1000)


def test_a_prompt_is_cut_to_the_budget_and_decoding_goes_on_beside_it() -> None:
    mixed = engine(batched=8)
    mixed.submit(Request("short", 4, [], 5), 0.0)
    mixed.submit(Request("long", 16, [], 1), 0.0)
    times = run_out(mixed)
    # Steps: 4 + 4 tokens of both, then 7 of the long one beside one decoded, then its last 5.
    assert times["short", FIRST] == pytest.approx(0.028)
    step_2 = 0.028 + (20 + 7 + 1 + 0.5) / 1000
    assert times["long", FIRST] == pytest.approx(step_2 + (20 + 5 + 1 + 0.6) / 1000)
    assert times["long", FINISHED] == times["long", FIRST]


def test_arrivals_of_one_moment_share_a_step_and_later_ones_wait() -> None:
    busy = engine()
    busy.submit(Request("a", 8, [], 1), 1.0)
    busy.submit(Request("b", 8, [], 1), 1.0)
    assert busy.next_event_s() == pytest.approx(1.036)
    busy.submit(Request("c", 8, [], 1), 1.010)
    times = run_out(busy)
    assert times["a", FIRST] == times["b", FIRST] == pytest.approx(1.036)
    assert times["c", FIRST] == pytest.approx(1.036 + 0.028)


def test_who_arrives_when_a_step_ends_is_in_the_next_one() -> None:
    busy = engine()
    busy.submit(Request("a", 8, [], 9), 0.0)
    boundary_s = busy.next_event_s()
    assert boundary_s is not None
    busy.advance(boundary_s)
    busy.submit(Request("b", 8, [], 1), boundary_s)
    times = run_out(busy)
    assert times["b", FIRST] == pytest.approx(boundary_s + (20 + 8 + 1 + 0.9) / 1000)


def test_waiting_requests_come_in_turn() -> None:
    narrow = engine(seqs=1)
    for id in "abc":
        narrow.submit(Request(id, 4, [], 2), 0.0)
    assert narrow.next_event_s() is not None
    assert (narrow.load().running, narrow.load().waiting) == (1, 2)
    times = run_out(narrow)
    assert times["a", FINISHED] < times["b", FIRST] < times["b", FINISHED] < times["c", FIRST]


def test_the_last_admitted_is_preempted_and_finishes_whole() -> None:
    tight = engine(blocks=4)
    tight.submit(Request("old", 8, [], 8), 0.0)
    tight.submit(Request("new", 8, [], 8), 0.0)
    times = run_out(tight)
    assert tight.load().preemptions == 1
    assert times["old", FINISHED] < times["new", FINISHED]
    assert tight.load().used_blocks == 0


def test_a_fully_cached_prompt_computes_its_last_block_again() -> None:
    warm = engine()
    warm.submit(Request("a", 12, [1, 2, 3], 1), 0.0)
    run_out(warm)
    assert warm.take_cache_events() == [Stored(None, (1, 2, 3), "a", 0)]
    warm.submit(Request("b", 12, [1, 2, 3], 1), 1.0)
    warm.submit(Request("c", 13, [1, 2, 3], 1), 1.0)
    next_s = warm.next_event_s()
    assert next_s is not None
    assert next_s == pytest.approx(1.0 + (20 + 4 + 1) / 1000)
    cached = {p.id: p.cached_tokens for p in warm.advance(next_s)}
    assert cached == {"b": 8, "c": 12}
    assert warm.take_cache_events() == [], "nothing new was stored, nothing is announced twice"
    assert warm.load().cached_tokens == 20 and warm.load().queried_tokens == 37


def test_a_block_is_announced_when_computed_and_not_before() -> None:
    cold = engine(batched=8)
    cold.submit(Request("a", 16, [1, 2, 3, 4], 9, [1, 2, 3, 4, 5, 6].__getitem__), 0.0)
    seen = []
    while (next_s := cold.next_event_s()) is not None:
        assert cold.take_cache_events() == []
        cold.advance(next_s)
        seen += [e.names for e in cold.take_cache_events() if isinstance(e, Stored)]
    # 24 tokens are computed: the last token of the answer never is.
    assert seen == [(1, 2), (3, 4), (5,), (6,)]


def test_evictions_for_a_step_are_told_when_it_begins() -> None:
    small = engine(blocks=3)
    small.submit(Request("a", 12, [1, 2, 3], 1), 0.0)
    run_out(small)
    small.take_cache_events()
    small.submit(Request("b", 8, [8, 9], 1), 1.0)
    assert small.take_cache_events() == []
    assert small.next_event_s() is not None
    assert small.take_cache_events() == [Removed((3, 2))]


def test_cancel_frees_place_and_blocks_at_once_wherever_the_request_is() -> None:
    busy = engine(batched=8, seqs=2)
    busy.submit(Request("decoding", 4, [], 50), 0.0)
    first_s = busy.next_event_s()
    assert first_s is not None
    busy.advance(first_s)
    busy.submit(Request("prefilling", 20, [], 5), first_s)
    busy.submit(Request("waiting", 20, [], 5), first_s)
    now_s = first_s + 0.001
    busy.advance(now_s)
    assert busy.load().used_blocks == 2 + 5
    assert busy.cancel("waiting", now_s) and busy.load().waiting == 0
    assert busy.cancel("decoding", now_s) and busy.load().used_blocks == 5
    assert busy.cancel("prefilling", now_s) and busy.load().used_blocks == 0
    assert busy.load().queued_prefill_tokens == 0
    assert not busy.cancel("waiting", now_s)
    assert run_out(busy) == {}


def test_cancel_ends_a_long_stretch_after_the_step_under_way() -> None:
    busy = engine()
    busy.submit(Request("a", 4, [], 100), 0.0)
    busy.submit(Request("b", 4, [], 50), 0.0)
    first_s = busy.next_event_s()
    assert first_s is not None
    busy.advance(first_s)
    busy.cancel("b", first_s + 0.005)
    # The step that has begun (10 + 2 + 1 ms) ends as begun; the next one carries "a" alone.
    assert busy.next_event_s() == pytest.approx(first_s + 0.013)


def test_the_cache_is_reset_only_when_idle() -> None:
    warm = engine()
    warm.submit(Request("a", 8, [1, 2], 3), 0.0)
    assert warm.next_event_s() is not None
    assert not warm.reset_cache()
    run_out(warm)
    warm.take_cache_events()
    assert warm.reset_cache() and warm.cached_names() == []
    assert warm.take_cache_events() == [Cleared()]


def test_step_sums_split_the_time_between_prefill_and_decode() -> None:
    mixed = engine(batched=8)
    mixed.submit(Request("a", 4, [], 3), 0.0)
    mixed.submit(Request("b", 8, [], 1), 0.0)
    end_s = max(run_out(mixed).values())
    sums = mixed.take_step_sums()
    # 4 + 4 tokens; 4 more beside one decoded over 5 tokens; one decoded over 6.
    assert (sums.steps, sums.prefill_tokens, sums.decode_batch, sums.decode_kv_tokens) == (
        (3, 12, 2, 11)
    )
    assert sums.prefill_ms == pytest.approx(28 + 24)
    assert sums.decode_ms == pytest.approx(1.5 + 11.6)
    assert sums.prefill_ms + sums.decode_ms == pytest.approx(end_s * 1000)
    assert mixed.take_step_sums().steps == 0


def test_long_stretches_are_not_walked_step_by_step() -> None:
    """A hundred thousand tokens take a handful of calls, not a hundred thousand."""
    large = Engine(LAPTOP, block_tokens=16, blocks=100_000)
    large.submit(Request("a", 16, [], 100_000), 0.0)
    calls = 0
    while (next_s := large.next_event_s()) is not None:
        large.advance(next_s)
        calls += 1
    assert calls < 5
