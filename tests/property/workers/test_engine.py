"""The engine under random traffic, and the closed form against one step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sim.cache import CacheEvent, Cleared, Removed, Stored
from workers.sim.engine import Engine
from workers.sim.request import Progress, ProgressKind, Request
from workers.sim.scheduler import RequestTooLarge
from workers.sim.speculation import Speculation
from workers.sim.timing import Profile, StepCost

BLOCK_TOKENS = 4
COST = StepCost(
    decode_base_ms=3.137,
    decode_sequence_ms=0.2113,
    decode_kv_token_ms=0.01709,
    prefill_floor_ms=4.271,
    prefill_base_ms=0.9,
    prefill_token_ms=0.5087,
    prefill_knee_token_ms=0.3011,
    attention_pair_ms=0.00307,
    prefill_knee_tokens=6,
)


@dataclass(frozen=True)
class Submit:
    request: Request


@dataclass(frozen=True)
class Cancel:
    id: int


@dataclass(frozen=True)
class Speculate:
    on: bool


@dataclass(frozen=True)
class Script:
    """What happens to an engine, and after how much time each."""

    profile: Profile
    blocks: int
    actions: list[tuple[float, Submit | Cancel | Speculate]]
    speculation: Speculation | None = None


def name(path: Iterable[int]) -> int:
    return int("1" + "".join(map(str, path)), 3)


@st.composite
def requests(draw: st.DrawFn, id: int) -> Request:
    prompt_tokens = draw(st.integers(1, 24))
    output_tokens = draw(st.integers(1, 30))
    blocks = (prompt_tokens + output_tokens) // BLOCK_TOKENS
    path = draw(st.lists(st.integers(0, 1), min_size=blocks, max_size=blocks))
    hashes = [name(path[: i + 1]) for i in range(blocks)]
    output_hash: Callable[[int], int] | None = hashes.__getitem__ if draw(st.booleans()) else None
    return Request(
        id, prompt_tokens, hashes[: prompt_tokens // BLOCK_TOKENS], output_tokens, output_hash
    )


@st.composite
def scripts(draw: st.DrawFn, *, speculating: bool = False) -> Script:
    seqs = draw(st.integers(1, 5))
    profile = Profile("test", 0, COST, draw(st.integers(seqs, 20)), seqs)
    actions: list[tuple[float, Submit | Cancel | Speculate]] = []
    for id in range(draw(st.integers(1, 12))):
        # Never commensurable with the durations above: no arrival ties with the end of a step.
        gap_s = draw(st.integers(0, 120)) * 0.00123457
        if id and draw(st.integers(0, 4)) == 0:
            actions.append((gap_s, Cancel(draw(st.integers(0, id - 1)))))
        elif speculating and draw(st.integers(0, 4)) == 0:
            actions.append((gap_s, Speculate(draw(st.booleans()))))
        else:
            actions.append((gap_s, Submit(draw(requests(id)))))
    drafts = Speculation(draw(st.integers(1, 6)), draw(st.sampled_from([0.0, 0.5, 0.9, 0.999])))
    return Script(profile, draw(st.integers(15, 40)), actions, drafts if speculating else None)


@dataclass
class Run:
    """All that an engine let be seen."""

    engine: Engine
    progress: list[Progress]
    events: list[CacheEvent]
    loads: list[object]

    def of(self, id: object) -> list[Progress]:
        return [p for p in self.progress if p.id == id]


def run(script: Script, *, closed_form: bool, check: Callable[[Run], None] | None = None) -> Run:
    engine = Engine(
        script.profile,
        block_tokens=BLOCK_TOKENS,
        blocks=script.blocks,
        closed_form=closed_form,
        speculation=script.speculation,
    )
    seen = Run(engine, [], [], [])

    def look() -> None:
        seen.events += engine.take_cache_events()
        seen.loads.append(engine.load())
        if check:
            check(seen)

    now_s = 0.0
    for gap_s, action in script.actions:
        now_s += gap_s
        seen.progress += engine.advance(now_s)
        look()
        if isinstance(action, Submit):
            engine.submit(action.request, now_s)
        elif isinstance(action, Cancel):
            engine.cancel(action.id, now_s)
        else:
            engine.speculate(on=action.on, now_s=now_s)
        look()
    while (next_s := engine.next_event_s()) is not None:
        seen.progress += engine.advance(next_s)
        if check:
            look()
    seen.events += engine.take_cache_events()
    return seen


def live_names(events: Iterable[CacheEvent]) -> set[int]:
    live: set[int] = set()
    for event in events:
        match event:
            case Stored(_, names):
                assert live.isdisjoint(names)
                live.update(names)
            case Removed(names):
                assert live.issuperset(names)
                live.difference_update(names)
            case Cleared():
                live.clear()
    return live


def check_invariants(run: Run) -> None:
    """What holds at any moment, counted anew from the jobs themselves."""
    scheduler = run.engine._scheduler
    load = run.engine.load()
    jobs = list(scheduler._jobs.values())
    decoding = [job for job in jobs if job in scheduler._decoding]
    others = [job for job in jobs if job not in scheduler._decoding]
    assert load.running + load.waiting == len(jobs)
    assert load.running <= run.engine.profile.max_num_seqs
    assert load.decode_kv_tokens == sum(job.computed_tokens for job in decoding)
    queued = sum(job.target_tokens - job.computed_tokens for job in others)
    assert load.queued_prefill_tokens == queued
    assert load.used_blocks <= load.total_blocks
    held = {name for job in jobs for name in job.names[: job.named_blocks]}
    private = sum(job.blocks - job.named_blocks for job in jobs)
    assert load.used_blocks == len(held) + private
    for job in jobs:
        assert job.computed_tokens <= job.blocks * BLOCK_TOKENS
        assert job.named_blocks * BLOCK_TOKENS <= job.computed_tokens
    assert live_names(run.events) == set(run.engine.cached_names())


def check_answers(script: Script, run: Run) -> None:
    """Every request that was not cancelled in time has a whole and orderly answer."""
    cancelled = {action.id for _, action in script.actions if isinstance(action, Cancel)}
    for _, action in script.actions:
        if not isinstance(action, Submit):
            continue
        request = action.request
        told = run.of(request.id)
        kinds = [p.kind for p in told]
        times = [p.time_s for p in told]
        assert times == sorted(times)
        assert kinds.count(ProgressKind.FINISHED) <= 1
        if ProgressKind.FINISHED in kinds:
            assert kinds[-1] is ProgressKind.FINISHED
            assert told[-1].output_tokens == request.output_tokens
            assert kinds[0] is ProgressKind.FIRST_TOKEN and told[0].output_tokens == 1
            assert told[0].cached_tokens < request.prompt_tokens
        else:
            assert request.id in cancelled


@settings(max_examples=150, deadline=None)
@given(scripts() | scripts(speculating=True), st.booleans())
def test_accounts_are_exact_and_answers_whole(script: Script, closed_form: bool) -> None:
    seen = run(script, closed_form=closed_form, check=check_invariants)
    check_answers(script, seen)
    load = seen.engine.load()
    assert (load.running, load.waiting, load.used_blocks) == (0, 0, 0)
    assert (load.queued_prefill_tokens, load.decode_kv_tokens) == (0, 0)


@settings(max_examples=250, deadline=None)
@given(scripts() | scripts(speculating=True))
def test_closed_form_equals_step_after_step(script: Script) -> None:
    fast = run(script, closed_form=True)
    slow = run(script, closed_form=False)
    milestones = [p for p in slow.progress if p.kind is not ProgressKind.TOKENS]
    assert [(p.id, p.kind, p.output_tokens, p.cached_tokens) for p in fast.progress] == [
        (p.id, p.kind, p.output_tokens, p.cached_tokens) for p in milestones
    ]
    assert [p.time_s for p in fast.progress] == pytest.approx(
        [p.time_s for p in milestones], abs=1e-9
    )
    assert fast.events == slow.events
    assert fast.loads == slow.loads
    assert sorted(fast.engine.cached_names()) == sorted(slow.engine.cached_names())
    sums, slow_sums = fast.engine.take_step_sums(), slow.engine.take_step_sums()
    assert vars(sums) == pytest.approx(vars(slow_sums), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(scripts())
def test_step_by_step_tells_every_token(script: Script) -> None:
    seen = run(script, closed_form=False)
    for _, action in script.actions:
        if isinstance(action, Submit):
            counts = [
                p.output_tokens
                for p in seen.of(action.request.id)
                if p.kind is not ProgressKind.FINISHED or p.output_tokens > 1
            ]
            assert counts == list(range(1, len(counts) + 1))


@settings(max_examples=100, deadline=None)
@given(scripts(speculating=True))
def test_a_verification_brings_one_token_at_least_and_what_was_drafted_at_most(
    script: Script,
) -> None:
    """SD5, SD7: no stall and no lost token, and what is counted is what was told."""
    seen = run(script, closed_form=False)
    assert script.speculation is not None
    for _, action in script.actions:
        if isinstance(action, Submit):
            told = seen.of(action.request.id)
            counts = list(dict.fromkeys(p.output_tokens for p in told))
            steps = [after - before for before, after in pairwise(counts)]
            assert all(1 <= n <= 1 + script.speculation.num_speculative_tokens for n in steps)
            assert all(p.accepted_tokens <= p.drafted_tokens for p in told)
    tally, sums = seen.engine.tally, seen.engine.take_step_sums()
    assert sums.accepted_drafts == tally.accepted_tokens == sum(tally.accepted_at)
    assert tally.accepted_tokens <= tally.drafted_tokens
    assert tally.accepted_at == sorted(tally.accepted_at, reverse=True)


@settings(max_examples=100, deadline=None)
@given(scripts(speculating=True))
def test_what_is_announced_does_not_depend_on_drafts(script: Script) -> None:
    """SD11: blocks are stored under the names of their accepted tokens, with drafts or without."""
    submits = [(gap_s, a) for gap_s, a in script.actions if isinstance(a, Submit)]
    room = 1_000
    drafting = run(replace(script, actions=[*submits], blocks=room), closed_form=False)
    plain = run(
        replace(script, actions=[*submits], blocks=room, speculation=None), closed_form=False
    )
    assert sorted(drafting.engine.cached_names()) == sorted(plain.engine.cached_names())


@settings(max_examples=100, deadline=None)
@given(scripts())
def test_time_and_tokens_of_steps_add_up(script: Script) -> None:
    """Nothing is computed that is not counted: without cancels or preemption, prefill tokens are
    the uncached ones of all prompts, and every answer's tokens but the first are decoded."""
    actions = [(gap_s, a) for gap_s, a in script.actions if isinstance(a, Submit)]
    seen = run(Script(script.profile, script.blocks, [*actions]), closed_form=True)
    load, sums = seen.engine.load(), seen.engine.take_step_sums()
    if load.preemptions:
        return
    requests = [action.request for _, action in actions]
    assert load.queried_tokens == sum(r.prompt_tokens for r in requests)
    assert sums.prefill_tokens == load.queried_tokens - load.cached_tokens
    assert sums.decode_batch == sum(r.output_tokens - 1 for r in requests)


def test_scripts_reach_preemption_eviction_and_hits() -> None:
    """The random scripts above are worth nothing if they never get there."""
    reached: set[str] = set()

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(scripts())
    def explore(script: Script) -> None:
        seen = run(script, closed_form=True)
        load = seen.engine.load()
        reached.update(["preemption"] if load.preemptions else [])
        reached.update(["hit"] if load.cached_tokens else [])
        reached.update(["eviction"] if any(isinstance(e, Removed) for e in seen.events) else [])

    explore()
    assert reached == {"preemption", "hit", "eviction"}


def test_a_request_that_can_never_fit_is_refused() -> None:
    engine = Engine(
        Profile("test", 0, COST, 8, 2), block_tokens=BLOCK_TOKENS, blocks=4, closed_form=True
    )
    with pytest.raises(RequestTooLarge, match="5 blocks"):
        engine.submit(Request("a", 12, [], 6), 0.0)
    engine.submit(Request("a", 12, [], 5), 0.0)
    assert engine.next_event_s() is not None
