"""One change of a phase's fleet at a time: acknowledged, then done, overdue or withdrawn. Pure.

A scaler acknowledges a change once it has begun to make it so: its `Scaled` names the decision.
Only then may a larger change take its place (AS10).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from proto.scaling import Action


class Transition(msgspec.Struct, frozen=True):
    """A change that is under way: how many workers of each pool there are to be."""

    decision: str
    action: Action
    began_s: float
    before: dict[str, int]
    wanted: dict[str, int]
    acknowledged_by: tuple[str, ...] = ()
    """Pools whose scalers have begun it."""

    @property
    def acknowledged(self) -> bool:
        """Every pool that it changes has begun to."""
        changed = {name for name, count in self.wanted.items() if count != self.before.get(name, 0)}
        return changed.issubset(self.acknowledged_by)

    def acknowledge(self, pool: str) -> Transition:
        """The same, begun by this pool's scaler too."""
        return msgspec.structs.replace(
            self, acknowledged_by=tuple(sorted({*self.acknowledged_by, pool}))
        )


class Outcome(StrEnum):
    """How far a transition has come."""

    UNDER_WAY = "under_way"
    DONE = "done"
    OVERDUE = "overdue"


def outcome(
    transition: Transition, ready: Mapping[str, int], now_s: float, timeout_s: float
) -> Outcome:
    """By who is ready now: more than wanted is as good as wanted on the way up, and fewer on the
    way down."""
    counts = ((ready.get(pool, 0), wanted) for pool, wanted in transition.wanted.items())
    if transition.action is Action.UP:
        done = all(there >= wanted for there, wanted in counts)
    else:
        done = all(there <= wanted for there, wanted in counts)
    if done:
        return Outcome.DONE
    return Outcome.OVERDUE if now_s - transition.began_s > timeout_s else Outcome.UNDER_WAY
