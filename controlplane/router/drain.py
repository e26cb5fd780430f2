"""How fast requests are finished: what a wait for a free worker is estimated from."""

from __future__ import annotations

from collections import deque

ENDS_KEPT = 64
ENDS_MIN = 8
"""Fewer say nothing."""


class Drain:
    """The latest ends of one model's requests. Where all workers are busy each of them lets
    another request in. Pure."""

    def __init__(self) -> None:
        self._ends_s: deque[float] = deque(maxlen=ENDS_KEPT)

    def ended(self, now_s: float) -> None:
        """A request has ended."""
        self._ends_s.append(now_s)

    def wait_s(self, ahead: int, now_s: float) -> float | None:
        """How long it takes until `ahead` requests and one more have ended, at the pace of late;
        None where too few have."""
        if len(self._ends_s) < ENDS_MIN:
            return None
        return (ahead + 1) * (now_s - self._ends_s[0]) / len(self._ends_s)
