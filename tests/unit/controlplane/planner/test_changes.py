"""How a fleet is changed: one change at a time, each with an end, within minimums and budget (AS10,
AS11, AS13, AS14)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from controlplane.planner.bounds import Budget, Wanted, constrain
from controlplane.planner.core import PlannerCore
from controlplane.planner.phase import PhaseMemory, PhaseView, Proposal
from controlplane.planner.plan import propose
from controlplane.planner.settings import PlannerSettings, PoolSettings
from proto.scaling import Action, Reason, Scaled
from proto.workers import Role
from tests.unit.controlplane.planner.scenes import (
    ENGINE,
    MODEL,
    RULES,
    begin,
    enough,
    idle_tick,
    load,
    phase,
    pool,
    record,
    settled,
    taught,
    with_ready,
    worker,
)

LONG_S = 10_000.0


# --- AS10, AS11: one change at a time, and none for ever


def test_as10_until_a_change_is_acknowledged_nothing_new_is_issued_though_the_load_doubles() -> (
    None
):
    view = phase(load(8.0), pool(ready=1))
    memory = PhaseMemory()
    begin(memory, propose(view, memory, RULES, 0.0), view)
    for now_s in range(5, 300, 5):
        proposal = propose(replace(view, load=load(16.0)), memory, RULES, float(now_s))
        assert (proposal.action, proposal.reason) == (Action.HOLD, Reason.IN_TRANSITION)
    assert memory.transition is not None
    done = with_ready(view, memory.transition.wanted["p"])
    assert propose(done, memory, RULES, 300.0).reason is not Reason.IN_TRANSITION
    assert memory.transition is None and memory.start_s == 300.0


def test_as10_one_that_is_acknowledged_and_outgrown_is_replaced_by_a_larger_one() -> None:
    view = phase(load(8.0), pool(ready=1))
    memory = PhaseMemory()
    begin(memory, propose(view, memory, RULES, 0.0), view)
    assert memory.transition is not None
    memory.transition = memory.transition.acknowledge("p")
    coming = memory.wanted["p"]
    proposal = propose(replace(view, load=load(30.0)), memory, RULES, 5.0)
    assert proposal.action is Action.UP and proposal.wanted["p"] > 2 * coming
    begin(memory, proposal, view)
    assert memory.transition is not None and memory.transition.wanted == proposal.wanted


def test_as10_it_is_the_scaler_that_acknowledges_by_naming_the_decision() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, ttft_ms=2_000, tpot_ms=60, most=40), "p")
    taught(core, 1, 0.0)
    memory = core.models[MODEL].phases[Role.AGGREGATED]
    assert memory.transition is not None and memory.transition.action is Action.UP
    decision = memory.transition.decision
    told = Scaled(model=MODEL, role=Role.AGGREGATED, hardware="h", decision=decision, replicas=1)
    for other in (
        told.model_copy(update={"decision": "another"}),
        told.model_copy(update={"trouble": "no room"}),
        told.model_copy(update={"hardware": "elsewhere"}),
    ):
        core.hear_scaled(other, 201.0)
        assert memory.transition is not None and not memory.transition.acknowledged
    core.hear_scaled(told, 202.0)
    assert memory.transition is not None and memory.transition.acknowledged


def test_as10_a_change_that_does_not_come_about_is_given_up() -> None:
    view = phase(load(8.0), pool(ready=1))
    memory = PhaseMemory()
    begin(memory, propose(view, memory, RULES, 0.0), view)
    late = propose(view, memory, RULES, RULES.ready_timeout_s + 1)
    assert (late.action, late.reason) == (Action.WITHDRAW, Reason.NEVER_READY)
    assert late.wanted == {"p": 1} and memory.transition is None
    memory.wanted = late.wanted
    again = propose(view, memory, RULES, RULES.ready_timeout_s + 5)
    assert (again.action, again.reason) == (Action.HOLD, Reason.NEVER_READY)
    later = propose(view, memory, RULES, RULES.ready_timeout_s + 2 + RULES.retry_s)
    assert later.action is Action.UP


def test_as11_a_scale_up_that_never_becomes_ready_does_not_wedge_it() -> None:
    view = phase(load(8.0), pool(ready=1))
    memory = PhaseMemory()
    begin(memory, propose(view, memory, RULES, 0.0), view)
    idle = replace(view, load=load(0.0), expected=load(0.0))
    proposals = [propose(idle, memory, RULES, float(s)) for s in range(5, 100, 5)]
    [withdrawn] = [p for p in proposals if p.action is not Action.HOLD]
    assert (withdrawn.action, withdrawn.reason) == (Action.WITHDRAW, Reason.NOT_NEEDED_ANY_MORE)
    assert withdrawn.wanted == {"p": 1} and memory.transition is None


def test_as11_changes_end_though_no_engine_has_told_yet_what_it_can_do() -> None:
    """Nobody has asked an engine for anything: minimums are raised, met, and raised again."""
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, least=2), "p")
    core.worker(worker("w0"), 0.0)
    assert idle_tick(core, 5.0) == (Action.UP, Reason.MINIMUM, 2)
    core.worker(worker("w1"), 10.0)
    assert idle_tick(core, 15.0) == (Action.HOLD, Reason.NO_CAPACITY_MODEL, 2)
    core.adopt(PlannerSettings(warm_up_s=0.0, least=3))
    assert idle_tick(core, 20.0) == (Action.UP, Reason.MINIMUM, 3)


def test_as11_what_never_becomes_ready_is_given_up_though_no_engine_has_told_what_it_can_do() -> (
    None
):
    settings = PlannerSettings(warm_up_s=0.0, least=3, ready_timeout_s=60.0)
    core = PlannerCore(settings, "p")
    core.worker(worker("w0"), 0.0)
    assert idle_tick(core, 5.0) == (Action.UP, Reason.MINIMUM, 3)
    core.adopt(settings.model_copy(update={"least": 1}))
    assert idle_tick(core, 60.0) == (Action.HOLD, Reason.NO_CAPACITY_MODEL, 3)
    [plan] = core.tick(61.0, view_stale=True).phases
    assert plan.action is Action.HOLD, "who is there is not known"
    assert idle_tick(core, 70.0) == (Action.WITHDRAW, Reason.NEVER_READY, 1)
    assert core.models[MODEL].phases[Role.AGGREGATED].transition is None
    assert idle_tick(core, 75.0) == (Action.HOLD, Reason.NO_CAPACITY_MODEL, 1)


def test_a_load_that_flutters_about_the_border_does_not_withdraw_what_is_starting() -> None:
    """Whoever is there must hold the tightened targets, and for long, as for scaling down."""
    busy = phase(load(8.0))
    view = with_ready(busy, enough(busy) - 1)
    loads = (replace(view, load=load(rate)) for rate in np.arange(8.0, 1.0, -0.25))
    view_calm = next(each for each in loads if enough(each) < enough(busy))
    memory = PhaseMemory()
    begin(memory, propose(view, memory, RULES, 0.0), view)
    for now_s in range(5, 300, 5):
        proposal = propose(view_calm, memory, RULES, float(now_s))
        assert (proposal.action, proposal.reason) == (Action.HOLD, Reason.IN_TRANSITION)


def test_load_that_comes_back_withdraws_a_scale_down() -> None:
    view = phase(load(1.0), pool(ready=10))
    proposal, memory = settled(view)
    assert proposal.action is Action.DOWN
    begin(memory, proposal, view)
    back = propose(replace(view, load=load(16.0)), memory, RULES, 200.0)
    assert (back.action, back.reason) == (Action.WITHDRAW, Reason.NEEDED_AFTER_ALL)
    assert back.wanted["p"] > proposal.wanted["p"]


# --- AS13: minimums and budget come last


def test_as13_minimum_and_budget_have_the_last_word() -> None:
    busy = phase(load(20.0), pool("a", ready=2))
    idle = phase(load(0.0), pool("b", ready=3, least=2), role=Role.DECODE)
    wanted = [Wanted(v, m, p) for v in (busy, idle) for p, m in [settled(v)]]
    assert wanted[0].proposal.wanted["a"] > 4
    up, down = constrain(wanted, Budget(accelerators=6))
    assert up.wanted["a"] == 4 and down.wanted["b"] == 2, "six accelerators, two of them kept"
    up, _ = constrain(wanted, Budget(cost_per_hour=4.0))
    assert (up.action, up.reason) == (Action.HOLD, Reason.BUDGET)


def test_as13_fewer_than_the_minimum_are_filled_up() -> None:
    view = phase(load(0.1), pool(ready=1, least=3))
    memory = PhaseMemory()
    [proposal] = constrain([Wanted(view, memory, propose(view, memory, RULES, 0.0))], Budget())
    assert (proposal.action, proposal.reason) == (Action.UP, Reason.MINIMUM)
    assert proposal.wanted == {"p": 3}


def test_as13_what_is_on_its_way_counts_against_the_budget() -> None:
    """Engines that were asked for a moment ago are not given to another phase, too."""
    first, second = phase(load(30.0), pool("a", ready=1)), phase(load(30.0), pool("b", ready=1))
    memory = PhaseMemory()
    asked = propose(first, memory, RULES, 0.0)
    begin(memory, asked, first)
    other, budget = PhaseMemory(), Budget(accelerators=asked.wanted["a"] + 2)
    wanted = [
        Wanted(first, memory, propose(first, memory, RULES, 5.0)),
        Wanted(second, other, propose(second, other, RULES, 5.0)),
    ]
    kept, granted = constrain(wanted, budget)
    assert wanted[1].proposal.wanted["b"] > 2
    assert (kept.action, kept.wanted) == (Action.HOLD, asked.wanted)
    assert granted.wanted["b"] == 2, "the one that is there, and the one that is left"


def test_a_share_of_the_last_peak_stays_in_reserve_and_is_forgotten() -> None:
    rules = RULES._replace(reserve=0.5, reserve_half_s=1_000.0)
    quiet = with_ready(phase(load(0.1)), 12)
    memory = PhaseMemory()

    def after(seconds: float, view: PhaseView) -> Proposal:
        return propose(view, memory, rules, seconds)

    for now_s in range(0, 120, 5):
        proposal = after(float(now_s), quiet)
        if proposal.action is Action.DOWN:
            break
    assert proposal.wanted == {"p": 6}, "whoever set up twelve knew why"
    memory.wanted = {"p": 6}
    kept = after(120.0, with_ready(quiet, 6))
    assert (kept.action, kept.reason) == (Action.HOLD, Reason.CAPPED_BY_FORECAST)
    later = (after(1_000.0 + s, with_ready(quiet, 6)) for s in range(0, 100, 5))
    assert next(p.wanted for p in later if p.action is Action.DOWN) == {"p": 3}


def test_what_the_rate_has_swung_by_is_kept_in_reserve_up_to_the_last_peak() -> None:
    """More than the peak never, as it has been enough."""
    quiet, memory = with_ready(phase(load(0.1)), 12), PhaseMemory()
    feared = replace(quiet, feared=load(8.0).at_rate(8.0))
    for now_s in range(0, 130, 5):
        down = propose(feared, memory, RULES, float(now_s))
        if down.action is Action.DOWN:
            break
    assert 1 < down.wanted["p"] < 12 and down.wanted["p"] == enough(phase(feared.feared or load(0)))
    wild = replace(quiet, feared=load(1.0).at_rate(1_000.0))
    assert settled(wild)[0].action is Action.HOLD, "twelve, and no more than twelve"


def test_more_than_was_ever_needed_is_asked_for_once_it_lasts() -> None:
    rules, calm = RULES._replace(grow_after_s=20.0), phase(load(8.0))
    calm, memory = with_ready(calm, enough(calm)), PhaseMemory()
    for now_s in range(0, 125, 5):
        assert propose(calm, memory, rules, float(now_s)).action is Action.HOLD
    burst = replace(calm, load=load(20.0))
    for now_s in (125, 130, 135, 140):
        young = propose(burst, memory, rules, float(now_s))
        assert (young.action, young.reason) == (Action.HOLD, Reason.LOAD_TOO_YOUNG)
    believed = propose(burst, memory, rules, 145.0)
    assert believed.action is Action.UP and believed.wanted["p"] == enough(burst)
    fewer = with_ready(calm, enough(calm) - 1)
    assert propose(fewer, memory, rules, 170.0).action is Action.UP, "what has been needed, at once"


def test_what_was_in_reserve_lately_stays_as_long_as_any_other_need() -> None:
    quiet, memory = with_ready(phase(load(0.1)), 12), PhaseMemory()
    feared = replace(quiet, feared=load(60.0).at_rate(60.0))
    for now_s in range(0, 125, 5):
        assert propose(feared, memory, RULES, float(now_s)).action is Action.HOLD
    later = [propose(quiet, memory, RULES, float(now_s)) for now_s in range(125, 200, 5)]
    down = next(i for i, each in enumerate(later) if each.action is Action.DOWN)
    assert 5 * down >= RULES.down_after_s - 5


def test_a_fleet_that_grows_is_sized_for_a_share_of_its_targets() -> None:
    view = phase(load(16.0), pool(ready=1))
    just = propose(view, PhaseMemory(), RULES, 0.0).wanted["p"]
    with_room = propose(view, PhaseMemory(), RULES._replace(sized_for=0.8), 0.0).wanted["p"]
    assert with_room > just == enough(view)


def test_hw7_the_cheapest_mix_that_holds_is_chosen() -> None:
    fast = ENGINE._replace(curve=ENGINE.curve._replace(prefill_token_ms=0.02, decode_base_ms=12.0))
    slow, quick = pool("slow", ready=0, price=1.0, least=0), pool("quick", ready=0, price=9.0)
    quick = quick._replace(engine=fast, least=0)
    cheap_slow = settled(phase(load(4.0), slow, quick))[0]
    assert cheap_slow.wanted["slow"] > 0 and cheap_slow.wanted["quick"] == 0
    cheap_quick = settled(phase(load(4.0), slow, quick._replace(price=1.0)))[0]
    assert cheap_quick.wanted["quick"] > 0 and cheap_quick.wanted["slow"] == 0


# --- from none to one


def test_a_pool_without_workers_gets_one_for_who_is_turned_away() -> None:
    dear = PoolSettings(model=MODEL, hardware="dear", least=0, price=9.0)
    cheap = PoolSettings(model=MODEL, hardware="h", least=0, price=1.0)
    core = PlannerCore(PlannerSettings(pools=(dear, cheap), ready_timeout_s=60.0), "p")
    assert idle_tick(core, 0.0) == (Action.HOLD, Reason.NO_DEMAND, 0)
    core.hear_record(record(1, 4.0, shed=True), 4.0)
    [plan] = core.tick(4.5, view_stale=True).phases
    assert (plan.action, plan.reason) == (Action.HOLD, Reason.STALE)
    tick = core.tick(5.0)
    assert {word.hardware: word.replicas for word in core.desired(tick)} == {"dear": 0, "h": 1}
    assert idle_tick(core, 10.0) == (Action.HOLD, Reason.NO_WORKERS, 1)
    assert idle_tick(core, 70.0) == (Action.WITHDRAW, Reason.NEVER_READY, 0)
    core.hear_record(record(2, 72.0, shed=True), 72.0)
    assert idle_tick(core, 75.0) == (Action.HOLD, Reason.NEVER_READY, 0)
    core.hear_record(record(3, 200.0, shed=True), 200.0)
    assert idle_tick(core, 205.0) == (Action.UP, Reason.NO_WORKERS, 1)
    core.worker(worker("w0"), 210.0)
    assert idle_tick(core, 215.0) == (Action.HOLD, Reason.NO_CAPACITY_MODEL, 1)


def test_only_a_pool_that_is_named_may_go_to_none() -> None:
    """Any other is forgotten with its last worker, and nothing would start one again."""
    with pytest.raises(ValidationError, match="least"):
        PlannerSettings(least=0)


# --- AS14: what is wanted and what is there


def test_as14_drift_is_told() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, ttft_ms=2_000, tpot_ms=60), "p")
    taught(core, 2, 0.0)
    core.tick(200.0)
    memory = core.models[MODEL].phases[Role.AGGREGATED]
    memory.decided, memory.transition = True, None
    memory.wanted = dict.fromkeys(memory.wanted, 3)
    [plan] = core.tick(205.0).phases
    assert list(plan.drift.values()) == [-1]
