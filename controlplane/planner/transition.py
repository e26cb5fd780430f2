"""One change of a phase's fleet at a time: begun, then done, overdue or withdrawn. Pure."""

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
