"""One phase of one model as a tick sees it, what is remembered of it, and what a tick says of it.

Plain data: `plan` decides over it, `bounds` has the last word.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from controlplane.planner.estimate import Engine, Estimate, Load
from controlplane.planner.transition import Transition
from proto.scaling import Action, Reason
from proto.workers import Role


class Rules(NamedTuple):
    """What an operator may turn; `controlplane.planner.settings` says what each does."""

    goal: float
    sensitivity: float
    kv_max: float
    down_after_s: float
    ready_timeout_s: float
    retry_s: float
    outgrown: float
    sized_for: float = 1.0
    grow_after_s: float = 0.0
    reserve: float = 0.0
    reserve_half_s: float = 3_600.0

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
    feared: Load | None = None
    """That may come before new workers are ready; None: not known."""
    refused_rate: float = 0.0
    """Requests of the model that are turned away a second."""
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
    """When those who are there would have been too few for the tightened targets the last time."""
    failed_until_s: float = -math.inf
    """Until then no new workers are asked for, as the last ones never became ready."""
    start_s: float = 0.0
    """How long workers took to become ready, of late; 0: not known."""
    peaks: dict[str, float] = field(default_factory=dict)
    """How many of each pool the largest load took that is remembered, faded since."""
    peaks_s: float = 0.0
    reserves: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)
    """For scaling down: when, and how many of each pool were kept in reserve."""
    asked: deque[tuple[float, dict[str, float]]] = field(default_factory=deque)
    """For scaling up: when, and how many of each pool alone were too few, of late."""


class Proposal(NamedTuple):
    """What a phase wants before bounds and budget."""

    action: Action
    reason: Reason
    wanted: dict[str, int]
    needed: float
    floor: int
    now: Estimate
