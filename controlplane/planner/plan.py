"""How many workers each phase should have, and the one reason for it. Pure functions of plain data.

Rules, in this order; the first that applies is the tick's word on the phase:

 1. Nothing is decided on missing data: stale reports hold, and never scale down (AS21).
 2. A transition under way is watched: done, overdue (withdrawn, AS11), not wanted any more for
    half of `down_after_s` (withdrawn), outgrown by the load (withdrawn for a larger one, which
    goes on with what has been begun), or else nothing new is issued (AS10).
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
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.planner.estimate import Engine, Estimate, Load, estimate, needed, reachable
from controlplane.planner.mix import Option, cheapest
from controlplane.planner.transition import Outcome, Transition, outcome
from proto.scaling import Action, Reason
from proto.workers import Role

REACHABLE_MIN = 0.05
"""Share of requests that an idle engine must serve in time, for more workers to be any help."""


class Rules(NamedTuple):
    """What an operator may turn; `controlplane.planner.settings` says what each does."""

    goal: float
    sensitivity: float
    kv_max: float
    down_after_s: float
    ready_timeout_s: float
    retry_s: float
    outgrown: float

    @property
    def steady_goal(self) -> float:
        """What a fleet is sized for: half of the misses allowed are left for what nobody could
        have foreseen."""
        return (1 + self.goal) / 2


class PoolView(NamedTuple):
    """One pool of the phase: who is there, what one of them can do, and what it costs."""

    name: str
    ready: int
    starting: int
    draining: int
    engine: Engine | None
    least: int
    most: int
    price: float = 0.0
    accelerators: int = 1


@dataclass(frozen=True)
class PhaseView:
    """All that a tick knows of one phase of one model."""

    model: str
    role: Role
    pools: tuple[PoolView, ...]
    load: Load
    """That arrives now, and is there."""
    expected: Load
    """That is forecast."""
    fresh: bool = True
    """Enough of what is to be known is known."""
    complete: bool = True
    """All of it is."""

    @property
    def ready(self) -> dict[str, int]:
        return {pool.name: pool.ready for pool in self.pools}

    @property
    def workers(self) -> int:
        return sum(pool.ready for pool in self.pools)


@dataclass
class PhaseMemory:
    """What is remembered of a phase from tick to tick."""

    wanted: dict[str, int] = field(default_factory=dict)
    decided: bool = False
    """Somebody has decided: until then, who is there is who is wanted."""
    transition: Transition | None = None
    needs: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)
    """For scaling down: when, and how many of each pool would have held the load alone."""
    short_s: float = -math.inf
    """When those who are there were too few the last time."""
    failed_until_s: float = -math.inf
    """Until then no new workers are asked for, as the last ones never became ready."""
    start_s: float = 0.0
    """How long workers took to become ready, of late; 0: not known."""


class Proposal(NamedTuple):
    """What a phase wants before bounds and budget."""

    action: Action
    reason: Reason
    wanted: dict[str, int]
    needed: float
    floor: int
    now: Estimate


def propose(view: PhaseView, memory: PhaseMemory, rules: Rules, now_s: float) -> Proposal:
    """This tick's word; also moves `memory` on. Nothing is issued before `constrain`."""
    if not memory.decided:
        memory.wanted = view.ready
    for pool in view.pools:
        memory.wanted.setdefault(pool.name, pool.ready)
    engines = [pool for pool in view.pools if pool.engine is not None]
    if not engines:
        reason = Reason.NO_CAPACITY_MODEL if view.workers else Reason.NO_WORKERS
        return _hold(view, memory, reason)
    needs = _needs(view, view.load, rules)
    floors = _needs(view, view.expected, rules)
    both = {name: max(needs[name], floors[name]) for name in needs}
    state = _State(view, memory, rules, now_s, needs, floors, both)
    if not view.fresh:
        return state.hold(Reason.STALE)
    _remember(state)
    if not _holds(view.pools, both, view.ready):
        memory.short_s = now_s
    return _transition(state) or _up(state) or _down(state)


@dataclass(frozen=True)
class _State:
    """One tick of one phase, half-way through."""

    view: PhaseView
    memory: PhaseMemory
    rules: Rules
    now_s: float
    needs: dict[str, float]
    floors: dict[str, float]
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


def _hold(view: PhaseView, memory: PhaseMemory, reason: Reason) -> Proposal:
    nothing = Estimate(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return Proposal(Action.HOLD, reason, dict(memory.wanted), 0.0, 0, nothing)


def _transition(state: _State) -> Proposal | None:
    """What becomes of the change under way; None if there is none, or it has just ended."""
    view, memory, rules, now_s = state.view, state.memory, state.rules, state.now_s
    transition = memory.transition
    if transition is None:
        return None
    came = outcome(transition, view.ready, now_s, rules.ready_timeout_s)
    if came is Outcome.DONE:
        memory.transition = None
        if transition.action is Action.UP:
            memory.start_s = now_s - transition.began_s
        return None
    if transition.action is Action.UP:
        if came is Outcome.OVERDUE:
            memory.transition = None
            memory.failed_until_s = now_s + rules.retry_s
            return state.proposal(Action.WITHDRAW, Reason.NEVER_READY, view.ready)
        if _holds(view.pools, state.both, view.ready):
            if now_s - memory.short_s >= rules.down_after_s / 2:
                memory.transition = None
                return state.proposal(Action.WITHDRAW, Reason.NOT_NEEDED_ANY_MORE, view.ready)
        elif _outgrown(state, transition):
            return None  # what replaces it, if the budget has anything for it
    elif came is Outcome.OVERDUE or not _holds(view.pools, state.both, transition.wanted):
        memory.transition = None
        if came is Outcome.OVERDUE:
            return state.proposal(Action.WITHDRAW, Reason.IN_TRANSITION, view.ready)
        wanted = _cheapest(view.pools, state.both, at_least=transition.wanted)
        return state.proposal(Action.WITHDRAW, Reason.NEEDED_AFTER_ALL, wanted)
    return state.hold(Reason.IN_TRANSITION)


def _outgrown(state: _State, transition: Transition) -> bool:
    """What is on its way is too little by far, and has been begun."""
    if not transition.acknowledged:
        return False
    wanted = _cheapest(state.view.pools, state.both, at_least=transition.wanted)
    coming = sum(transition.wanted.values())
    return sum(wanted.values()) >= max(coming + 2, coming * state.rules.outgrown)


def _up(state: _State) -> Proposal | None:
    view, memory = state.view, state.memory
    ready = view.ready
    if _holds(view.pools, state.both, ready):
        return None
    if state.now_s < memory.failed_until_s:
        return state.hold(Reason.NEVER_READY)
    if not _reachable(view):
        return state.hold(Reason.TARGET_UNREACHABLE)
    wanted = _cheapest(view.pools, state.both, at_least=ready)
    if sum(wanted.values()) <= view.workers:
        return state.hold(Reason.BUDGET)  # the bounds of the pools leave nothing to add
    if all(memory.wanted.get(name, 0) >= count for name, count in wanted.items()):
        return state.hold(Reason.DRIFT)
    first = next(pool for pool in view.pools if pool.engine is not None)
    return state.proposal(Action.UP, _why_up(state, first), wanted)


def _why_up(state: _State, pool: PoolView) -> Reason:
    """What is at risk, the worst first."""
    if _holds(state.view.pools, state.needs, state.view.ready):
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
    if not _smaller(view, now, ready):
        idle = not state.view.load.rate and not state.view.load.running
        least = all(pool.ready <= pool.least for pool in view.pools)
        if least:
            return state.hold(Reason.MINIMUM if idle else Reason.TARGETS_MET)
        return state.hold(Reason.CONSOLIDATION_REFUSED)
    floored = {name: max(need, state.floors[name]) for name, need in now.items()}
    if not _smaller(view, floored, ready):
        return state.hold(Reason.CAPPED_BY_FORECAST)
    lately = _window_max(memory)
    long_enough = state.now_s - memory.needs[0][0] >= state.rules.down_after_s - 1e-6
    floored = {name: max(need, state.floors[name]) for name, need in lately.items()}
    wanted = _smaller(view, floored, ready)
    if not long_enough or not wanted:
        return state.hold(Reason.LOAD_TOO_YOUNG)
    return state.proposal(Action.DOWN, Reason.CONSOLIDATION, wanted)


def _smaller(
    view: PhaseView, needs: Mapping[str, float], ready: Mapping[str, int]
) -> dict[str, int] | None:
    """A part of those who are there that holds this, and is less than all; None if none is."""
    if not needs:
        return None
    wanted = _cheapest(view.pools, needs, at_most=ready)
    fewer = sum(wanted.values()) < sum(ready.values())
    return wanted if fewer and _holds(view.pools, needs, wanted) else None


def _remember(state: _State) -> None:
    """Keep what it takes to hold the tightened targets, for as long as scaling down looks back."""
    view, memory, rules = state.view, state.memory, state.rules
    tight = _needs(view, view.load.tighter(rules.sensitivity), rules, rules.sensitivity)
    memory.needs.append((state.now_s, tight))
    while len(memory.needs) > 1 and memory.needs[1][0] <= state.now_s - rules.down_after_s:
        memory.needs.popleft()


def _window_max(memory: PhaseMemory) -> dict[str, float]:
    lately: dict[str, float] = {}
    for _, needs in memory.needs:
        for name, need in needs.items():
            lately[name] = max(need, lately.get(name, 0.0))
    return lately


def _needs(view: PhaseView, load: Load, rules: Rules, sensitivity: float = 1.0) -> dict[str, float]:
    """How many of each pool would hold the load alone; infinite where none is enough."""
    return {
        pool.name: needed(
            load, pool.engine, view.role, rules.steady_goal, rules.kv_max * sensitivity
        )
        for pool in view.pools
        if pool.engine is not None
    }


def _holds(
    pools: tuple[PoolView, ...], needs: Mapping[str, float], counts: Mapping[str, int]
) -> bool:
    """Whether so many of each pool carry the load between them."""
    if not needs or max(needs.values()) <= 0:
        return True
    share = sum(counts.get(name, 0) / need for name, need in needs.items() if need > 0)
    return share >= 1 - 1e-9


def _cheapest(
    pools: tuple[PoolView, ...],
    needs: Mapping[str, float],
    *,
    at_least: Mapping[str, int] | None = None,
    at_most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    options = []
    for pool in pools:
        most = pool.most if at_most is None else min(pool.most, at_most.get(pool.name, 0))
        least = pool.least if at_least is None else max(pool.least, at_least.get(pool.name, 0))
        options.append(
            Option(
                pool.name,
                needs.get(pool.name, math.inf),
                pool.price,
                pool.accelerators,
                min(least, most),
                most,
            )
        )
    return cheapest(options)


def _reachable(view: PhaseView) -> bool:
    return any(
        reachable(view.load, pool.engine, view.role) >= REACHABLE_MIN
        for pool in view.pools
        if pool.engine is not None
    )


def _estimate(view: PhaseView, pool: PoolView, rules: Rules) -> Estimate:
    assert pool.engine is not None
    return estimate(view.load, pool.engine, max(1, view.workers), view.role, rules.goal)


class Wanted(NamedTuple):
    """A phase and what it wants, on its way through the bounds."""

    view: PhaseView
    memory: PhaseMemory
    proposal: Proposal


class Budget(NamedTuple):
    """Of all phases together; None: no limit."""

    accelerators: int | None = None
    cost_per_hour: float | None = None


def constrain(wanted: list[Wanted], budget: Budget) -> list[Proposal]:
    """Minimums, then the budget, after everything else (AS13). What goes down goes down; what is
    there stays; what is to be added is added one by one, to whoever has least of what it needs."""
    proposals = [_at_least(each) for each in wanted]
    counts = [
        {name: min(count, each.view.ready.get(name, 0)) for name, count in proposal.wanted.items()}
        for each, proposal in zip(wanted, proposals, strict=True)
    ]
    for each, count in zip(wanted, counts, strict=True):
        for pool in each.view.pools:
            count[pool.name] = max(count.get(pool.name, 0), pool.least)
    while True:
        short = [
            (_fill(each, counts[i]), i, pool)
            for i, each in enumerate(wanted)
            for pool in each.view.pools
            if counts[i][pool.name] < proposals[i].wanted.get(pool.name, 0)
            and _affordable(wanted, counts, pool, budget)
        ]
        if not short:
            break
        _, i, pool = min(short, key=lambda entry: entry[:2])
        counts[i][pool.name] += 1
    return [
        _granted(each, proposal, count)
        for each, proposal, count in zip(wanted, proposals, counts, strict=True)
    ]


def _at_least(each: Wanted) -> Proposal:
    proposal = each.proposal
    wanted = dict(proposal.wanted)
    for pool in each.view.pools:
        wanted[pool.name] = max(wanted.get(pool.name, 0), pool.least)
    if wanted == proposal.wanted:
        return proposal
    if proposal.action is Action.HOLD and each.memory.transition is None:
        return proposal._replace(action=Action.UP, reason=Reason.MINIMUM, wanted=wanted)
    return proposal._replace(wanted=wanted)


def _fill(each: Wanted, counts: Mapping[str, int]) -> float:
    return sum(counts.values()) / max(1e-9, each.proposal.needed)


def _affordable(
    wanted: list[Wanted], counts: list[dict[str, int]], one_more: PoolView, budget: Budget
) -> bool:
    accelerators, cost = one_more.accelerators, one_more.price
    for each, count in zip(wanted, counts, strict=True):
        for pool in each.view.pools:
            accelerators += count[pool.name] * pool.accelerators
            cost += count[pool.name] * pool.price
    within = budget.accelerators is None or accelerators <= budget.accelerators
    return within and (budget.cost_per_hour is None or cost <= budget.cost_per_hour + 1e-9)


def _granted(each: Wanted, proposal: Proposal, counts: dict[str, int]) -> Proposal:
    if all(counts.get(name, 0) >= count for name, count in proposal.wanted.items()):
        return proposal
    ready, memory = each.view.ready, each.memory
    if proposal.action is Action.UP:
        grows = any(counts[name] > ready.get(name, 0) for name in counts)
        coming = memory.transition.wanted if memory.transition else {}
        if grows and counts != coming:
            return proposal._replace(wanted=counts)
        return proposal._replace(
            action=Action.HOLD, reason=Reason.BUDGET, wanted=dict(memory.wanted)
        )
    return proposal
