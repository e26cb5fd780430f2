"""Whether this process has stood still: its machine was paused, or starved of its cores.

What was read from a socket right after may be old, and nothing else tells how old.
"""

from __future__ import annotations

from collections import deque

import anyio

BEAT_S = 0.5
PAUSE_S = 1.0
"""A beat that is late by less is not counted."""
PAUSES_KEPT = 32


class Pulse:
    """Beats while it runs; a beat that comes late is a pause. Never run, it knows of none."""

    def __init__(self) -> None:
        self._due_s: float | None = None
        self._pauses: deque[tuple[float, float]] = deque(maxlen=PAUSES_KEPT)
        """When each ended, and how long it was."""

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat(anyio.current_time())
            await anyio.sleep(BEAT_S)

    def beat(self, now_s: float) -> None:
        """The process runs, and will say so again in `BEAT_S`."""
        if self._due_s is not None and now_s - self._due_s > PAUSE_S:
            self._pauses.append((now_s, now_s - self._due_s))
        self._due_s = now_s + BEAT_S

    def stood_still_s(self, since_s: float, now_s: float) -> float:
        """For how long in all, in pauses that ended after `since_s`. One that has just ended
        counts, whether there was a beat since or not."""
        if self._due_s is not None and now_s > self._due_s:
            self.beat(now_s)
        return sum(length_s for ended_s, length_s in self._pauses if ended_s > since_s)
