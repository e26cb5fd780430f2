"""The last word: minimums, then the budget, after everything else (AS13). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from controlplane.planner.phase import PhaseMemory, PhaseView, PoolView, Proposal
from proto.scaling import Action, Reason


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
    """What each phase is granted. What goes down goes down; what is there, or on its way, stays;
    what is to be added is added one by one, to whoever has least of what it needs."""
    proposals = [_at_least(each) for each in wanted]
    counts = [
        {name: min(count, _standing(each, name)) for name, count in proposal.wanted.items()}
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


def _standing(each: Wanted, pool: str) -> int:
    """Of a pool, that are there or are starting as they have been asked for: no word takes them
    back but one on their own phase."""
    return max(each.view.ready.get(pool, 0), each.memory.wanted.get(pool, 0))


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
