"""What the estimate did not see: the load is taken for more than it is where targets are missed.

No formula knows how well a router places requests, or what else slows engines down. So what comes
out is compared with what was promised (AS1: the latencies decide, whatever is believed of the
capacity). If requests miss their targets more often than the goal allows, beyond chance, and no
change is under way that may help, the load counts for more from now on, and so takes more workers.
The surcharge wears off, slowly, so that a bad hour does not cost for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.planner.demand import Fared

STEP = 1.08
MOST = 2.0
HALF_LIFE_S = 1_200.0
SETTLE_S = 20.0
"""After a change or a step, before outcomes tell of it."""
REQUESTS_MIN = 30


@dataclass
class Correction:
    """Of one model."""

    since_s: float
    """Outcomes count from here on."""
    factor: float = 1.0
    seen_s: float = -math.inf

    def judge(self, fared: Iterable[Fared], goal: float, now_s: float, *, changing: bool) -> None:
        """How requests fared of late, by class: the worst one decides."""
        if math.isfinite(self.seen_s):
            worn = 0.5 ** ((now_s - self.seen_s) / HALF_LIFE_S)
            self.factor = 1 + (self.factor - 1) * worn
        self.seen_s = now_s
        if changing:
            self.since_s = now_s
            return
        if now_s - self.since_s < SETTLE_S:
            return
        if any(_missed(each, goal) for each in fared):
            self.factor = min(MOST, self.factor * STEP)
            self.since_s = now_s


def _missed(fared: Fared, goal: float) -> bool:
    """More misses than the goal allows, by two standard deviations."""
    if fared.requests < REQUESTS_MIN:
        return False
    allowed = 1 - goal
    error = math.sqrt(allowed * goal / fared.requests)
    return 1 - fared.met > allowed + 2 * error
