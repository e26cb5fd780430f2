"""Workers that have just failed somebody: left alone for a moment, unless there is nobody else.

The registry learns of a dead engine within seconds; every request that is sent there until then
fails. So a failure that a gateway tells of counts at once, for a short while, and only as a wish:
it never makes a worker eligible, and it leaves nobody without one (KR19).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from proto.ids import WorkerId


class Inhibitions:
    """Who is avoided, and until when. Pure."""

    def __init__(self, lasts_s: float) -> None:
        self._lasts_s = lasts_s
        self._until_s: dict[WorkerId, float] = {}

    def failed(self, workers: Iterable[WorkerId], now_s: float) -> None:
        """These have just failed a request."""
        for worker in workers:
            self._until_s[worker] = now_s + self._lasts_s

    def lift(self, worker: WorkerId) -> None:
        """The worker has left, or begun another life."""
        self._until_s.pop(worker, None)

    def avoided(self, now_s: float) -> Collection[WorkerId]:
        """Who is to be left alone now."""
        if self._until_s:
            self._until_s = {w: until_s for w, until_s in self._until_s.items() if until_s > now_s}
        return self._until_s.keys()
