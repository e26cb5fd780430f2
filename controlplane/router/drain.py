"""How fast requests are finished: what a wait for a free worker is estimated from.

Only ends while all workers are busy say anything: each of them then lets another request in. Where
somebody is free requests end as they come.
"""

from __future__ import annotations

import math
from collections import deque

ENDS_KEPT = 64
ENDS_MIN = 8
"""Fewer say nothing."""
MOMENT_S = 0.1
"""A worker that is free for no longer has only yet to be given the next request."""


class Drain:
    """The latest ends of one model's requests since all its workers were found busy. Pure."""

    def __init__(self) -> None:
        self._ends_s: deque[float] = deque(maxlen=ENDS_KEPT)
        self._free_s = math.inf
        """Since when somebody is free; infinite while nobody is."""

    def counts(self, now_s: float) -> bool:
        """Whether all are busy, or were a moment ago."""
        return now_s - self._free_s <= MOMENT_S

    def look(self, now_s: float, *, free: bool) -> None:
        """Somebody is free, or nobody. Forgets all ends if somebody was for more than a moment."""
        if not self.counts(now_s):
            self._ends_s.clear()
        self._free_s = min(self._free_s, now_s) if free else math.inf

    def ended(self, now_s: float) -> None:
        """A request has ended."""
        if self.counts(now_s):
            self._ends_s.append(now_s)

    def wait_s(self, ahead: int, now_s: float) -> float | None:
        """How long it takes until `ahead` requests and one more have ended, at the pace of late;
        None where too few have."""
        if len(self._ends_s) < ENDS_MIN:
            return None
        return (ahead + 1) * (now_s - self._ends_s[0]) / len(self._ends_s)
