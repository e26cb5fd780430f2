"""How many workers hold a load: of each pool alone, of several together, and the cheapest of those.

A pool's need is the number of its workers that would hold the load alone. Workers of several pools
hold it together when their shares of those needs add up to one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from controlplane.planner.estimate import Load, needed, reachable
from controlplane.planner.mix import Option, cheapest
from controlplane.planner.phase import PhaseView, PoolView, Rules

REACHABLE_MIN = 0.05
"""Share of requests that an idle engine must serve in time, for more workers to be any help."""


def needs_of(
    view: PhaseView, load: Load, rules: Rules, sensitivity: float = 1.0
) -> dict[str, float]:
    """How many of each pool would hold the load alone; infinite where none is enough."""
    return {
        pool.name: needed(
            load, pool.engine, view.role, rules.steady_goal, rules.kv_max * sensitivity
        )
        for pool in view.pools
        if pool.engine is not None
    }


def holds(
    pools: tuple[PoolView, ...], needs: Mapping[str, float], counts: Mapping[str, int]
) -> bool:
    """Whether so many of each pool carry the load between them."""
    if not needs or max(needs.values()) <= 0:
        return True
    share = sum(counts.get(name, 0) / need for name, need in needs.items() if need > 0)
    return share >= 1 - 1e-9


def cheapest_of(
    pools: tuple[PoolView, ...],
    needs: Mapping[str, float],
    *,
    at_least: Mapping[str, int] | None = None,
    at_most: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """That hold for the least money, within these bounds and their pools' own."""
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


def smaller(
    view: PhaseView, needs: Mapping[str, float], ready: Mapping[str, int]
) -> dict[str, int] | None:
    """A part of those who are there that holds this, and is less than all; None if none is."""
    if not needs:
        return None
    wanted = cheapest_of(view.pools, needs, at_most=ready)
    fewer = sum(wanted.values()) < sum(ready.values())
    return wanted if fewer and holds(view.pools, needs, wanted) else None


def within_reach(view: PhaseView) -> bool:
    """More workers would be some help."""
    return any(
        reachable(view.load, pool.engine, view.role) >= REACHABLE_MIN
        for pool in view.pools
        if pool.engine is not None
    )
