"""The rules of autoscaling by latency, one by one (requirements AS1 to AS21 and others)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from controlplane.planner.bounds import Budget, Wanted, constrain
from controlplane.planner.core import PlannerCore
from controlplane.planner.demand import Demand, Targets
from controlplane.planner.estimate import Load, estimate, needed
from controlplane.planner.forecast import SEASON_S, WARM_BINS, Bin, History, forecast
from controlplane.planner.phase import PhaseMemory, PhaseView
from controlplane.planner.plan import propose
from controlplane.planner.settings import ClassTargets, PlannerSettings
from controlplane.planner.transition import Transition
from proto.scaling import Action, Reason, pool_of
from proto.workers import Role, WorkerState
from tests.unit.controlplane.planner.scenes import (
    ENGINE,
    MODEL,
    RULES,
    enough,
    load,
    phase,
    pool,
    record,
    report,
    settled,
    steps,
    taught,
    with_ready,
    worker,
)

LONG_S = 10_000.0


# --- AS1: latencies decide, and nothing else


def test_as1_engines_that_compute_all_the_time_are_enough_while_targets_are_met() -> None:
    view = phase(load(4.0))
    view = with_ready(view, enough(view))
    now = propose(view, PhaseMemory(), RULES, 0.0)
    assert now.action is Action.HOLD and now.now.attainment >= RULES.goal
    assert "utilisation" not in PhaseView.__dataclass_fields__


def test_as1_targets_missed_by_engines_that_hardly_compute_take_more_of_them() -> None:
    slow = ENGINE._replace(curve=ENGINE.curve._replace(decode_base_ms=45.0))
    view = phase(load(1.0), pool(ready=1, engine=slow))
    proposal = propose(view, PhaseMemory(), RULES, 0.0)
    assert proposal.action is Action.UP and proposal.wanted["p"] > 1


# --- AS2: load is token work


def test_as2_prompts_32_times_as_long_take_more_prefill_workers_at_the_same_rate() -> None:
    short, long = load(4.0, 500), load(4.0, 16_000)
    for_short = needed(short, ENGINE, Role.PREFILL, 0.99, 0.9)
    for_long = needed(long, ENGINE, Role.PREFILL, 0.99, 0.9)
    assert for_long >= 4 * for_short


# --- AS3: tails of each class, never means


def test_as3_a_class_whose_tail_is_late_counts_though_the_mean_is_fine() -> None:
    demand = Demand(sample_s=600)
    for i in range(100):
        late = i % 10 == 0
        demand.hear(record(i, float(i), ttft_ms=5_000 if late else 10, slo_class="a"), float(i))
        demand.hear(record(i, float(i), ttft_ms=10, slo_class="b"), float(i))
    fared = demand.fared({}, Targets(1_000, 60), 0.99, 0.0)
    assert fared["a"].met == pytest.approx(0.9) and fared["a"].ttft_ms == 5_000
    assert fared["b"].met == 1.0


# --- AS4, DG26: the phase that is short, and only that one


def test_as4_a_full_prefill_phase_grows_and_idle_decode_does_not() -> None:
    demand = load(4.0, 16_000, 20)
    prefill = settled(phase(demand, pool(ready=1), role=Role.PREFILL))[0]
    decode = settled(phase(demand, pool(ready=1), role=Role.DECODE))[0]
    assert prefill.action is Action.UP and prefill.reason is Reason.TTFT_AT_RISK
    assert decode.action is Action.HOLD


def test_as4_a_full_decode_phase_grows_and_idle_prefill_does_not() -> None:
    demand = load(4.0, 200, 2_000)
    prefill = settled(phase(demand, pool(ready=1), role=Role.PREFILL))[0]
    decode = settled(phase(demand, pool(ready=1), role=Role.DECODE))[0]
    assert decode.action is Action.UP and decode.reason is Reason.TPOT_AT_RISK
    assert prefill.action is Action.HOLD


def test_dg26_the_ratio_of_prefill_to_decode_follows_the_mix() -> None:
    def ratio(prompt: int, output: int) -> float:
        demand = load(4.0, prompt, output)
        prefill = needed(demand, ENGINE, Role.PREFILL, 0.99, 0.9)
        return prefill / needed(demand, ENGINE, Role.DECODE, 0.99, 0.9)

    assert ratio(16_000, 200) > 1 > ratio(200, 2_000)


# --- AS5: the forecast is a floor


def test_as5_the_load_moves_the_fleet_above_the_forecast_and_never_below() -> None:
    quiet, busy = load(1.0), load(8.0)
    by_forecast = settled(phase(quiet, pool(ready=1), expected=busy))[0]
    assert by_forecast.action is Action.UP and by_forecast.reason is Reason.FORECAST_FLOOR
    view = phase(quiet, pool(ready=by_forecast.wanted["p"]), expected=busy)
    kept = settled(view)[0]
    assert kept.action is Action.HOLD and kept.reason is Reason.CAPPED_BY_FORECAST
    above = settled(phase(busy, pool(ready=1), expected=quiet))[0]
    assert above.action is Action.UP and above.wanted == by_forecast.wanted


# --- AS6: what is forecast, and what until then


def test_as6_until_warm_what_was_is_what_will_be() -> None:
    history = History(bin_s=60.0)
    for i in range(WARM_BINS - 1):
        history.add(Bin(60.0 * i, 1.0 + i, 1_000.0, 100.0))
    found = forecast(history, 120.0)
    assert found is not None
    assert found.rate == pytest.approx(np.mean([7.0, 8.0, 9.0]))


def test_as6_once_warm_a_trend_is_seen() -> None:
    history = History(bin_s=60.0)
    for i in range(40):
        history.add(Bin(60.0 * i, 10.0 + i, 1_000.0, 100.0))
    found = forecast(history, 180.0)
    assert found is not None
    assert 50 < found.rate < 55 and found.prompt_tokens == pytest.approx(1_000, rel=0.01)


def test_as6_the_second_day_knows_the_first() -> None:
    history = History(bin_s=600.0)
    for i in range(144 + 30):
        evening = i % 144 >= 33
        history.add(Bin(600.0 * i, 50.0 if evening else 10.0, 1_000.0, 100.0))
    found = forecast(history, 2_400.0)
    assert found is not None and found.rate > 30


def test_as6_bins_that_are_not_exactly_of_a_length_keep_their_times_of_day() -> None:
    """Ticks are seconds apart, and a planner may be away for an hour: in the morning the rate is
    that of the morning."""
    history, now_s, rates = History(bin_s=60.0), 0.0, []
    while now_s < SEASON_S + 9 * 3_600:
        busy = now_s % SEASON_S >= 7 * 3_600
        history.add(Bin(now_s, 20.0 if busy else 0.01, 800.0, 100.0))
        away = SEASON_S + 6.5 * 3_600 <= now_s < SEASON_S + 7.25 * 3_600
        now_s += 3_600.0 if away else 63.0
        if busy and now_s >= SEASON_S + 7.5 * 3_600 and now_s % 600 < 63:
            found = forecast(history, 120.0)
            assert found is not None
            rates.append(found.rate)
    assert len(rates) > 5 and rates == pytest.approx([20.0] * len(rates), rel=0.25)


def test_as6_nothing_is_forecast_that_is_more_than_twice_what_was_seen_or_is_usual() -> None:
    history = History(bin_s=300.0)
    for i in range(288 + 40):
        night = i % 288 < 36
        again = i >= 288
        history.add(Bin(300.0 * i, (8.0 if again else 0.1) if night else 20.0, 800.0, 100.0))
        if again and i % 5 == 0:
            found = forecast(history, 1_200.0)
            assert found is not None and found.rate <= 40


def test_as6_hit_rate_and_accept_length_are_the_last_ones_and_nothing_before_that() -> None:
    core = PlannerCore(PlannerSettings(), "p")
    assert core.fleet.accept_length(MODEL) == 1.0
    demand = Demand(sample_s=600)
    demand.hear(record(1, 0.0), 0.0)
    assert demand.load(1.0, {}, Targets(1, 1), 0.0).new_tokens.tolist() == [2_000.0]


def test_sd9_accepted_drafts_are_capacity() -> None:
    demand = load(4.0, 200, 2_000)
    plain = needed(demand, ENGINE, Role.DECODE, 0.99, 0.9)
    assert needed(demand, ENGINE._replace(accept_length=2.5), Role.DECODE, 0.99, 0.9) < plain


# --- AS7: idle heartbeats and few samples


def test_as7_idle_reports_teach_nothing_and_few_samples_decide_nothing() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0), "p")
    core.worker(worker("w0"), 0.0)
    for i in range(200):
        core.hear_load(report("w0"), float(i))
    core.hear_load(report("w0", 4, steps(2_000, 40)), 200.0)
    [plan] = core.tick(200.0).phases
    assert (plan.action, plan.reason) == (Action.HOLD, Reason.NO_CAPACITY_MODEL)


def test_as7_what_nobody_serves_is_no_demand_of_anybodys_and_leaves_nothing_behind() -> None:
    core = PlannerCore(PlannerSettings(), "p")
    core.worker(worker("w0"), 0.0)
    for i in range(100):
        core.hear_record(msgspec.structs.replace(record(i, 0.0, shed=True), model=f"m{i}"), 0.0)
    assert not core.models
    core.hear_record(record(100, 0.0), 0.0)
    adapted = msgspec.structs.replace(record(101, 0.0), model="poet", base_model=MODEL)
    core.hear_record(adapted, 0.0)
    assert core.models.keys() == {MODEL}
    assert core.models[MODEL].tokens[2] == 2


# --- AS8: up if either target is at risk, down only if both are safe


@pytest.mark.parametrize(
    ("demand", "reason"),
    [(load(6.0, 8_000, 2), Reason.TTFT_AT_RISK), (load(6.0, 100, 1_500), Reason.TPOT_AT_RISK)],
)
def test_as8_an_aggregated_pool_grows_if_either_target_is_at_risk(
    demand: Load, reason: Reason
) -> None:
    proposal = settled(phase(demand, pool(ready=1)))[0]
    assert (proposal.action, proposal.reason) == (Action.UP, reason)


def test_as8_it_shrinks_only_if_both_are_safe_with_room_to_spare() -> None:
    view = phase(load(16.0))
    least = enough(view)
    tighter = view.load.tighter(RULES.sensitivity)
    tight = int(needed(tighter, ENGINE, view.role, RULES.steady_goal, 0.72))
    assert tight > least, "the tightened targets take more"
    assert settled(with_ready(view, tight))[0].reason is Reason.CONSOLIDATION_REFUSED
    down = settled(with_ready(view, tight + 2))[0]
    assert down.action is Action.DOWN and down.wanted["p"] == tight


# --- AS9: the survivors take the others' share


def test_as9_two_decode_workers_at_seven_tenths_are_not_one() -> None:
    kv_tokens = 0.7 * ENGINE.kv_tokens * 2
    running = kv_tokens / 8_000
    demand = load(0.1, 8_000, 200, tpot_ms=500.0, running=running, context=8_000)
    view = phase(demand, pool(ready=2), role=Role.DECODE)
    assert estimate(demand, ENGINE, 2, Role.DECODE, 0.99).kv_share == pytest.approx(0.7)
    proposal = settled(view)[0]
    assert (proposal.action, proposal.reason) == (Action.HOLD, Reason.CONSOLIDATION_REFUSED)


def test_as9_a_hundred_ticks_of_constant_load_change_nothing() -> None:
    rng = np.random.default_rng(7)
    core = PlannerCore(PlannerSettings(ttft_ms=2_000, tpot_ms=60, most=40, warm_up_s=0.0), "p")
    count = taught(core, 6, 0.0)
    flips, number, running, now_s, levels = 0, 0, 0, 200.0, []
    for tick in range(160):
        now_s += 5.0
        arrivals = int(rng.poisson(4.0 * 5))
        for _ in range(arrivals):
            core.hear_record(record(number, now_s - 6.0), now_s)
            number += 1
        running = max(0, 24 + int(rng.integers(-5, 6)))
        for i in range(count):
            core.hear_load(report(f"w{i}", running // count, steps(8_000, 40)), now_s)
        for name, (history, horizon_s) in core.due(now_s).items():
            core.take(name, forecast(history, horizon_s))
        [plan] = core.tick(now_s).phases
        if tick >= 60:
            flips += plan.action is not Action.HOLD
        if plan.action is not Action.HOLD:
            count = obey(core, count, plan.wanted, now_s)
        levels.append(count)
    assert flips == 0, levels


# --- AS12: what is cold teaches nothing


def test_as12_a_cold_newcomer_does_not_multiply_the_decode_target() -> None:
    def after(cold: bool) -> float:
        core = PlannerCore(PlannerSettings(warm_up_s=30.0, most=40), "p")
        taught(core, 2, -100.0)
        if cold:
            core.worker(worker("new"), 195.0)
            slow = ENGINE.curve._replace(decode_base_ms=2_000.0, decode_request_ms=50.0)
            for i in range(40):
                core.hear_load(report("new", 4, steps(500, 40, slow)), 195.0 + i * 0.25)
        curve = core.capacities.curve(worker("w0"))
        assert curve is not None
        return curve.decode_base_ms

    assert after(cold=True) == after(cold=False) == pytest.approx(20.0, rel=0.05)


# --- AS16: from tokens to time


def test_as16_more_queued_tokens_are_a_later_first_token_and_without_data_it_holds() -> None:
    idle = estimate(load(0.5), ENGINE, 2, Role.AGGREGATED, 0.95)
    queued = estimate(load(0.5, queued=100_000), ENGINE, 2, Role.AGGREGATED, 0.95)
    assert queued.ttft_ms > idle.ttft_ms + 2_000
    view = phase(load(50.0), pool(engine=None))
    proposal = propose(view, PhaseMemory(), RULES, 0.0)
    assert (proposal.action, proposal.reason) == (Action.HOLD, Reason.NO_CAPACITY_MODEL)


# --- AS17: targets are of a class


def test_as17_each_class_has_targets_of_its_own() -> None:
    settings = PlannerSettings(classes={"batch": ClassTargets(ttft_ms=60_000, tpot_ms=500)})
    assert (settings.targets.ttft_ms, settings.targets.tpot_ms) == (500, 50)
    demand = Demand(sample_s=600)
    demand.hear(record(1, 0.0, slo_class="batch"), 0.0)
    demand.hear(record(2, 0.0, slo_class="other"), 0.0)
    asked = demand.load(1.0, settings.class_targets, settings.targets, 0.0)
    assert sorted(asked.ttft_ms.tolist()) == [500.0, 60_000.0]


# --- AS18: each tick tells all


def test_as18_every_tick_tells_estimates_action_and_one_reason() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, ttft_ms=2_000, tpot_ms=60), "p")
    taught(core, 2, 0.0)
    [plan] = core.tick(200.0).phases
    assert plan.ttft_ms > 0 and plan.tpot_ms > 0 and 0 < plan.attainment <= 1
    assert isinstance(plan.action, Action) and isinstance(plan.reason, Reason)
    assert plan.model == MODEL and plan.rate > 0


# --- AS20: bimodal traffic


def test_as20_the_short_half_of_a_bimodal_mix_keeps_its_tail() -> None:
    both = load(3.0, [200, 30_000], ttft_ms=1_500.0)
    both = replace(both, ttft_ms=np.where(both.prompt_tokens > 1_000, 20_000.0, 500.0))
    mean = load(3.0, 15_100, ttft_ms=20_000.0)
    workers = int(needed(both, ENGINE, Role.PREFILL, 0.95, 0.9))
    short = both.prompt_tokens < 1_000
    only = replace(both, ttft_ms=np.where(short, 500.0, 1e9))
    assert estimate(only, ENGINE, workers, Role.PREFILL, 0.95).ttft_met >= 0.95
    assert workers > needed(mean, ENGINE, Role.PREFILL, 0.95, 0.9), "means would have hidden it"


# --- AS21: missing data


def test_as21_stale_data_holds_and_never_scales_down() -> None:
    view = with_ready(phase(load(0.1)), 10)
    assert settled(view)[0].action is Action.DOWN
    silent = settled(replace(view, fresh=False, complete=False))[0]
    assert (silent.action, silent.reason) == (Action.HOLD, Reason.STALE)
    partly = settled(replace(view, complete=False))[0]
    assert (partly.action, partly.reason) == (Action.HOLD, Reason.STALE)


def test_as21_workers_that_do_not_speak_are_missing_data() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, stale_s=5.0), "p")
    taught(core, 2, 0.0)
    [plan] = core.tick(LONG_S).phases
    assert (plan.action, plan.reason) == (Action.HOLD, Reason.STALE)


# --- shed requests, other versions, unreachable targets


def test_requests_that_were_turned_away_are_demand() -> None:
    demand = Demand(sample_s=600)
    demand.flow(0, 0, 0.0)
    for i in range(100):
        demand.hear(record(i, i / 10, shed=True), i / 10)
    demand.flow(0, 0, 10.0)
    assert demand.rate(10.0, 10.0) == pytest.approx(10.0)


def test_prompts_of_another_length_are_seen_before_their_requests_have_ended() -> None:
    def asked(tokens_each: int) -> float:
        demand = Demand(sample_s=600)
        for i in range(100):
            demand.hear(record(i, i / 10), i / 10)
        for second in range(0, 31, 5):
            demand.flow(2 * second, 2 * second * tokens_each, 10.0 + second)
        now = demand.load(2.0, {}, Targets(1, 1), 40.0, window_s=30.0)
        return float(now.new_tokens.mean())

    assert asked(2_100) == 2_000, "as sampled: no more than chance"
    assert asked(100) == pytest.approx(100)
    assert asked(16_000) == pytest.approx(16_000)


def test_a_rise_is_carried_on_and_a_steady_rate_is_not() -> None:
    def coming(rate: Callable[[int], float]) -> tuple[float, float]:
        demand, count = Demand(sample_s=600), 0.0
        for second in range(0, 180, 5):
            count += 5 * rate(second)
            demand.flow(int(count), 0, float(second))
        return demand.rate(40.0, 175.0), demand.coming_rate(60.0, 30.0, 175.0)

    steady, expected = coming(lambda _: 4.0)
    assert expected == pytest.approx(steady, rel=0.05)
    rising, expected = coming(lambda second: 1.0 + second * 0.04)
    assert 1.15 * rising < expected <= 1.5 * rising


def test_a_rate_that_swings_is_feared_to_be_back_and_a_steady_one_is_not() -> None:
    def feared(rate: Callable[[int], float]) -> tuple[float, float]:
        demand, count, rng = Demand(sample_s=600), 0, np.random.default_rng(3)
        for second in range(0, 1_500, 5):
            count += int(rng.poisson(5 * rate(second)))
            demand.flow(count, 0, float(second))
        return demand.rate(120.0, 1_495.0), demand.feared_rate(60.0, 60.0, 1_495.0)

    usual, steady = feared(lambda _: 4.0)
    assert steady == pytest.approx(usual, rel=0.15)
    usual, swinging = feared(lambda second: 6.0 if second // 120 % 2 else 2.0)
    assert swinging > usual + 2.0
    demand = Demand(sample_s=600)
    assert demand.feared_rate(60.0, 60.0, 0.0) == 0.0, "nothing is known"


def test_who_drains_takes_no_arrivals_along_and_leaves_nobody_its_load() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, ttft_ms=2_000, tpot_ms=60, most=40), "p")
    taught(core, 4, 0.0)
    for tick in range(12):
        now_s = 200.0 + 5 * tick
        for i in range(4):
            core.hear_load(report(f"w{i}", 20, steps(2_000, 40)), now_s)
        if tick == 6:
            draining = worker("w3").model_copy(update={"state": WorkerState.DRAINING})
            core.worker(draining, now_s)
        [plan] = core.tick(now_s).phases
    assert core.models[MODEL].demand.rate(40.0, now_s) == 0.0
    assert plan.running == 60


def test_hw5_another_engine_version_is_learned_anew() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0), "p")
    taught(core, 1, 0.0)
    assert core.capacities.curve(worker("w0")) is not None
    core.worker(worker("w0", version="2"), 300.0)
    assert core.tick(300.0).phases[0].reason in (Reason.NO_CAPACITY_MODEL, Reason.STALE)
    assert core.capacities.curve(worker("w0", version="2")) is None


def test_hw5_one_worker_of_another_version_is_not_what_its_pool_is_taken_for() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0), "p")
    taught(core, 3, 0.0)
    slow = ENGINE.curve._replace(prefill_token_ms=0.5)
    core.worker(worker("canary", version="2"), 200.0)
    for n in range(60):
        core.hear_load(report("canary", 4, steps(400 * (n % 5), 40 + n, slow)), 200.0 + n)
    assert core.capacities.curve(worker("canary", version="2")) is not None
    engine = core.fleet.engine(pool_of(worker("w0")))
    assert engine is not None and engine.curve.prefill_token_ms == pytest.approx(0.05, rel=0.1)


def test_what_is_told_is_what_was_asked_and_not_what_it_is_taken_for() -> None:
    core = PlannerCore(PlannerSettings(warm_up_s=0.0, ttft_ms=2_000, tpot_ms=60), "p")
    core.worker(worker("w0"), 0.0)
    [plan] = core.tick(1.0).phases
    assert plan.hit_rate == 0.0, "nobody has asked for anything"
    taught(core, 2, 0.0)
    model = core.models[MODEL]
    model.correction.factor = 1.5
    [plan] = core.tick(200.0).phases
    settings = core.settings
    arrive = model.demand.coming_rate(settings.rate_window_s, settings.start_s, 200.0)
    assert plan.rate == pytest.approx(arrive) and model.correction.factor > 1.4


def test_targets_that_an_idle_engine_misses_do_not_buy_engines() -> None:
    view = phase(load(2.0, tpot_ms=5.0), pool(ready=2))
    proposal = settled(view)[0]
    assert proposal.action is not Action.UP


def obey(core: PlannerCore, count: int, wanted: int, now_s: float) -> int:
    for i in range(count, wanted):
        core.worker(worker(f"w{i}"), now_s)
    for i in range(wanted, count):
        core.worker_left(worker(f"w{i}").worker)
    return wanted


def test_a_change_that_the_budget_lets_not_grow_is_not_begun_anew() -> None:
    """Else its workers were waited for afresh at every tick, and never overdue."""
    small, grown = phase(load(1.0), pool(ready=1)), phase(load(60.0), pool(ready=1))
    memory, budget = PhaseMemory(), Budget(accelerators=4)
    for view in (small, grown, grown):
        [granted] = constrain([Wanted(view, memory, propose(view, memory, RULES, 0.0))], budget)
        if granted.action is Action.UP:
            memory.transition = Transition(
                "d", granted.action, 0.0, {"p": 1}, granted.wanted, acknowledged_by=("p",)
            )
            memory.wanted = dict(granted.wanted)
    assert granted.action is Action.HOLD
    assert memory.transition is not None and memory.transition.began_s == 0.0
    [overdue] = constrain(
        [Wanted(grown, memory, propose(grown, memory, RULES, RULES.ready_timeout_s + 1))], budget
    )
    assert (overdue.action, overdue.reason) == (Action.WITHDRAW, Reason.NEVER_READY)
