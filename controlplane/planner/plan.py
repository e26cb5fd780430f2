"""How many workers each phase should have, and the one reason for it. Pure functions of plain data.

Rules, in this order; the first that applies is the tick's word on the phase:

 1. Nothing is decided on missing data: stale reports hold, and never scale down (AS21).
 2. A transition under way is watched: done, overdue (withdrawn, AS11), not wanted any more by
    the measure of scaling down (withdrawn), outgrown by the load (withdrawn for a larger one,
    which goes on with what has been begun), or else nothing new is issued (AS10). Where no engine's
    capacity is known, done and overdue are all that can be told, and nothing below applies.
 3. Up, when the workers there are do not hold the targets of the load that arrives now, or of what
    is forecast for when a new worker would be ready. The forecast is a floor; the load moves the
    fleet above it and never below (AS5, AS6). By as many as it takes, at least one (AS8).
 4. Down, when fewer hold the targets tightened by `sensitivity`, each with its share of the
    others' load (AS8, AS9), and have done so for `down_after_s`.
 5. Otherwise hold.

Only latencies count: utilisation is nowhere among the inputs (AS1). Each phase is looked at by
itself, so spare capacity of one is no help to another (AS4). Minimum and budget come after all of
this (`constrain`, AS13).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controlplane.planner.estimate import Estimate, estimate
from controlplane.planner.phase import PhaseMemory, PhaseView, PoolView, Proposal, Rules
from controlplane.planner.sizes import cheapest_of, holds, needs_of, smaller, within_reach
from controlplane.planner.transition import Outcome, Transition, outcome
from proto.scaling import Action, Reason


def propose(view: PhaseView, memory: PhaseMemory, rules: Rules, now_s: float) -> Proposal:
    """This tick's word; also moves `memory` on. Nothing is issued before `constrain`."""
    if not memory.decided:
        memory.wanted = view.ready
    for pool in view.pools:
        memory.wanted.setdefault(pool.name, pool.ready)
    engines = [pool for pool in view.pools if pool.engine is not None]
    if not engines:
        overdue = _settle(view, memory, rules, now_s) if view.fresh else None
        if overdue is not None:
            return _unsized(Action.WITHDRAW, overdue, view.ready)
        return _unknown(view, memory, now_s)
    needs = needs_of(view, view.load.tighter(rules.sized_for), rules)
    floors = needs_of(view, view.expected.tighter(rules.sized_for), rules)
    reserved = _reserved(view, memory, needs, rules, now_s)
    floors = {name: max(floor, reserved[name]) for name, floor in floors.items()}
    asked = {name: max(needs[name], floors[name]) for name in needs}
    both = _believed(memory, asked, rules, now_s)
    state = _State(view, memory, rules, now_s, needs, floors, asked, both)
    if not view.fresh:
        return state.hold(Reason.STALE)
    _remember(state)
    tight = {name: max(need, floors[name]) for name, need in memory.needs[-1][1].items()}
    if not holds(view.pools, tight, view.ready):
        memory.short_s = now_s
    return _transition(state) or _up(state) or _down(state)


def _reserved(
    view: PhaseView, memory: PhaseMemory, needs: Mapping[str, float], rules: Rules, now_s: float
) -> dict[str, float]:
    """A share of what the largest load took that is remembered: what was there may be back before
    engines have started. Whoever set up the first fleet knew of such a load. More than that share,
    up to all of it, where the rate has swung so far of late."""
    if not memory.peaks:
        memory.peaks_s = now_s
    faded = 0.5 ** ((now_s - memory.peaks_s) / rules.reserve_half_s)
    memory.peaks_s = now_s
    for name in needs:
        memory.peaks[name] = memory.peaks.get(name, float(view.workers)) * faded
    feared = {}
    if view.feared is not None:
        feared = needs_of(view, view.feared.tighter(rules.sized_for), rules)
    reserved = {
        name: max(rules.reserve * memory.peaks[name], min(memory.peaks[name], feared.get(name, 0)))
        for name in needs
    }
    _note(memory.reserves, reserved, rules.down_after_s, now_s)
    return reserved


def _note(
    noted: deque[tuple[float, dict[str, float]]],
    each: dict[str, float],
    kept_s: float,
    now_s: float,
) -> None:
    """Keep it for so long; the oldest one is what held at the beginning of that time."""
    noted.append((now_s, each))
    while len(noted) > 1 and noted[1][0] <= now_s - kept_s:
        noted.popleft()


def _believed(
    memory: PhaseMemory, asked: dict[str, float], rules: Rules, now_s: float
) -> dict[str, float]:
    """More than the largest load took that is remembered is believed once it has been needed for
    `grow_after_s`: most such bursts are over before engines have started. All is believed while
    too little is known for scaling down."""
    _note(memory.asked, asked, rules.grow_after_s, now_s)
    if not memory.needs or now_s - memory.needs[0][0] < rules.down_after_s - 1e-6:
        return asked
    return {
        name: max(
            min(need, memory.peaks[name]),
            min(before.get(name, need) for _, before in memory.asked),
        )
        for name, need in asked.items()
    }


@dataclass(frozen=True)
class _State:
    """One tick of one phase, half-way through."""

    view: PhaseView
    memory: PhaseMemory
    rules: Rules
    now_s: float
    needs: dict[str, float]
    floors: dict[str, float]
    asked: dict[str, float]
    both: dict[str, float]

    def hold(self, reason: Reason) -> Proposal:
        return self.proposal(Action.HOLD, reason, self.memory.wanted)

    def proposal(self, action: Action, reason: Reason, wanted: Mapping[str, int]) -> Proposal:
        first = next(pool for pool in self.view.pools if pool.engine is not None)
        return Proposal(
            action,
            reason,
            dict(wanted),
            min(self.needs.values()),
            math.ceil(min(self.floors.values())),
            _estimate(self.view, first, self.rules),
        )


def _unknown(view: PhaseView, memory: PhaseMemory, now_s: float) -> Proposal:
    """With no engine of which it is known what it can do; with none at all one is begun with, of
    the cheapest pool, as soon as somebody is turned away."""
    reason = Reason.NO_CAPACITY_MODEL if view.workers else Reason.NO_WORKERS
    if view.workers or any(memory.wanted.values()):
        return _unsized(Action.HOLD, reason, memory.wanted)
    if not view.refused_rate:
        return _unsized(Action.HOLD, Reason.NO_DEMAND, memory.wanted)
    if not view.fresh:
        return _unsized(Action.HOLD, Reason.STALE, memory.wanted)
    if now_s < memory.failed_until_s:
        return _unsized(Action.HOLD, Reason.NEVER_READY, memory.wanted)
    first = min(view.pools, key=lambda pool: pool.price)
    return _unsized(Action.UP, reason, {**memory.wanted, first.name: max(1, first.least)})


def _unsized(action: Action, reason: Reason, wanted: Mapping[str, int]) -> Proposal:
    """A word on engines of which it is not known what they can do."""
    nothing = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Proposal(action, reason, dict(wanted), 0.0, 0, nothing)


def _settle(view: PhaseView, memory: PhaseMemory, rules: Rules, now_s: float) -> Reason | None:
    """Forget the change under way if it is over; if that is because it is overdue, the reason for
    which it is withdrawn."""
    transition = memory.transition
    if transition is None:
        return None
    came = outcome(transition, view.ready, now_s, rules.ready_timeout_s)
    if came is Outcome.UNDER_WAY:
        return None
    memory.transition = None
    grows = transition.action is Action.UP
    if came is Outcome.DONE:
        if grows:
            memory.start_s = now_s - transition.began_s
        return None
    if not grows:
        return Reason.IN_TRANSITION
    memory.failed_until_s = now_s + rules.retry_s
    return Reason.NEVER_READY


def _transition(state: _State) -> Proposal | None:
    """What becomes of the change under way; None if there is none, or it has just ended."""
    view, memory, rules, now_s = state.view, state.memory, state.rules, state.now_s
    overdue = _settle(view, memory, rules, now_s)
    if overdue is not None:
        return state.proposal(Action.WITHDRAW, overdue, view.ready)
    transition = memory.transition
    if transition is None:
        return None
    if transition.action is Action.UP:
        if holds(view.pools, state.both, view.ready):
            if now_s - memory.short_s >= rules.down_after_s:
                memory.transition = None
                return state.proposal(Action.WITHDRAW, Reason.NOT_NEEDED_ANY_MORE, view.ready)
        elif _outgrown(state, transition):
            return None  # what replaces it, if the budget has anything for it
    elif not holds(view.pools, state.both, transition.wanted):
        memory.transition = None
        wanted = cheapest_of(view.pools, state.both, at_least=transition.wanted)
        return state.proposal(Action.WITHDRAW, Reason.NEEDED_AFTER_ALL, wanted)
    return state.hold(Reason.IN_TRANSITION)


def _outgrown(state: _State, transition: Transition) -> bool:
    """What is on its way is too little by far, and has been begun."""
    if not transition.acknowledged:
        return False
    wanted = cheapest_of(state.view.pools, state.both, at_least=transition.wanted)
    coming = sum(transition.wanted.values())
    return sum(wanted.values()) >= max(coming + 2, coming * state.rules.outgrown)


def _up(state: _State) -> Proposal | None:
    view, memory = state.view, state.memory
    ready = view.ready
    if holds(view.pools, state.both, ready):
        enough = holds(view.pools, state.asked, ready)
        return None if enough else state.hold(Reason.LOAD_TOO_YOUNG)
    if state.now_s < memory.failed_until_s:
        return state.hold(Reason.NEVER_READY)
    if not within_reach(view):
        return state.hold(Reason.TARGET_UNREACHABLE)
    wanted = cheapest_of(view.pools, state.both, at_least=ready)
    if sum(wanted.values()) <= view.workers:
        return state.hold(Reason.BUDGET)  # the bounds of the pools leave nothing to add
    if all(memory.wanted.get(name, 0) >= count for name, count in wanted.items()):
        return state.hold(Reason.DRIFT)
    first = next(pool for pool in view.pools if pool.engine is not None)
    return state.proposal(Action.UP, _why_up(state, first), wanted)


def _why_up(state: _State, pool: PoolView) -> Reason:
    """What is at risk, the worst first."""
    if holds(state.view.pools, state.needs, state.view.ready):
        return Reason.FORECAST_FLOOR
    now, rules = _estimate(state.view, pool, state.rules), state.rules
    if now.kv_share > rules.kv_max and min(now.ttft_met, now.tpot_met) >= rules.steady_goal:
        return Reason.KV_FULL
    return Reason.TTFT_AT_RISK if now.ttft_met <= now.tpot_met else Reason.TPOT_AT_RISK


def _down(state: _State) -> Proposal:
    view, memory = state.view, state.memory
    ready = view.ready
    if not view.complete:
        return state.hold(Reason.STALE)
    now = memory.needs[-1][1] if memory.needs else {}
    if not smaller(view, now, ready):
        idle = not state.view.load.rate and not state.view.load.running
        least = all(pool.ready <= pool.least for pool in view.pools)
        if least:
            return state.hold(Reason.MINIMUM if idle else Reason.TARGETS_MET)
        return state.hold(Reason.CONSOLIDATION_REFUSED)
    floored = {name: max(need, state.floors[name]) for name, need in now.items()}
    if not smaller(view, floored, ready):
        return state.hold(Reason.CAPPED_BY_FORECAST)
    lately = _highest([*memory.needs, *memory.reserves])
    floored = {name: max(need, state.floors[name]) for name, need in lately.items()}
    wanted = smaller(view, floored, ready)
    if not _long_enough(state) or not wanted:
        return state.hold(Reason.LOAD_TOO_YOUNG)
    return state.proposal(Action.DOWN, Reason.CONSOLIDATION, wanted)


def _remember(state: _State) -> None:
    """Keep what it takes to hold the tightened targets, for as long as scaling down looks back;
    what it took all that time is a peak to remember."""
    view, memory, rules = state.view, state.memory, state.rules
    tight = needs_of(view, view.load.tighter(rules.sensitivity), rules, rules.sensitivity)
    _note(memory.needs, tight, rules.down_after_s, state.now_s)
    if _long_enough(state):
        for name in memory.peaks:
            lasting = min(needs.get(name, 0.0) for _, needs in memory.needs)
            memory.peaks[name] = max(memory.peaks[name], min(lasting, view.workers))


def _long_enough(state: _State) -> bool:
    """Needs are remembered for as long as it takes to believe in them."""
    oldest_s = state.memory.needs[0][0]
    return state.now_s - oldest_s >= state.rules.down_after_s - 1e-6


def _highest(noted: Iterable[tuple[float, dict[str, float]]]) -> dict[str, float]:
    lately: dict[str, float] = {}
    for _, needs in noted:
        for name, need in needs.items():
            lately[name] = max(need, lately.get(name, 0.0))
    return lately


def _estimate(view: PhaseView, pool: PoolView, rules: Rules) -> Estimate:
    assert pool.engine is not None
    return estimate(view.load, pool.engine, max(1, view.workers), view.role, rules.goal)
