"""What is answered when nobody can be chosen: why, worker by worker, and when to ask again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from proto.ids import WorkerId
from proto.route import ALL_BUSY, NO_WORKER, UNKNOWN_MODEL, Rejected

WORKERS_TOLD = 8
RETRY_AFTER_S = 1.0
RETRY_AFTER_MAX_S = 60.0

Reasons = Mapping[WorkerId, str]


def unknown_model(model: str) -> Rejected:
    """Nobody serves it, busy or not."""
    return Rejected(UNKNOWN_MODEL, f"no worker serves {model!r}", RETRY_AFTER_S)


def nobody(refused: Reasons) -> Rejected:
    """Every worker is filtered out."""
    return Rejected(
        NO_WORKER, f"no worker can take it now: {_told(refused, len(refused))}", RETRY_AFTER_S
    )


def all_busy(busy: Reasons, count: int, wait_s: float | None, why: str = "") -> Rejected:
    """All that could take it are busy. `busy` tells why some of them are, of `count`; `wait_s` is
    how long it is likely to last, None where that is not known, and `why` it does not wait."""
    # Those that have just become free are for others, who have waited for them.
    told = _told(busy, count) or "whoever is free is for requests that wait already"
    detail = f"every worker that could take it is busy: {told}"
    if why:
        detail += f"; {why}"
    retry_after_s = RETRY_AFTER_S if wait_s is None else wait_s
    return Rejected(ALL_BUSY, detail, min(max(retry_after_s, RETRY_AFTER_S), RETRY_AFTER_MAX_S))


def _told(reasons: Reasons, count: int) -> str:
    """The first of so many workers, each with its reason."""
    why = ", ".join(f"{w} is {reason}" for w, reason in islice(reasons.items(), WORKERS_TOLD))
    return why if count <= WORKERS_TOLD else f"{why}, and {count - WORKERS_TOLD} more"
