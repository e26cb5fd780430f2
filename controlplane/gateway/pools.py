"""One model's trouble stays its own: a limit of requests at once and a circuit breaker for each.

A pool is the workers of one model. When most attempts on it fail, further requests are refused at
once instead of queueing for engines that cannot serve them and eating the gateway's memory and
retries; now and then one is let through to see whether it is well again. Pure.

The breaker's states are those of Nygard's "Release It!": closed (all pass), open (none does), half
open (one does, and decides).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

from controlplane.gateway.openai import ClientError
from proto.ids import WorkerId

WINDOW_S = 10.0
"""Outcomes older than one to two of these count no more."""
FORGOTTEN_S = 3600.0
"""Longer than streams last."""
FAILURES_MIN = 5
FAILURE_SHARE = 0.5
OPEN_FIRST_S = 1.0
OPEN_MAX_S = 30.0
FULL_RETRY_S = 1.0


@dataclass
class Attempt:
    """One that a breaker has let pass. `worker` and `ok` are set by who makes it; an `ok` of None:
    nothing was learned."""

    began_s: float
    probe: bool
    """It was let through an open breaker, and decides."""
    worker: WorkerId | None = None
    """Who is to serve it, once that is known."""
    ok: bool | None = None
    fails_anew: bool = False
    """It failed, and not by what others that were with its worker have failed by already."""


class Breaker:
    """Opens when at least `FAILURES_MIN` attempts and `FAILURE_SHARE` of all have failed.

    Whatever was with a worker when it failed fails with it, hundreds of streams maybe, and is one
    failure: an engine that dies does not speak for the others of its pool.
    """

    def __init__(self) -> None:
        self._since_s = 0.0
        self._now = [0, 0]
        self._before = [0, 0]
        self._open_s = OPEN_FIRST_S
        self._failed_s: dict[WorkerId | None, float] = {}
        """When a failure of a worker was last counted."""
        self._next_probe_s: float | None = None
        """When the next may pass, while it is open."""

    @property
    def closed(self) -> bool:
        return self._next_probe_s is None

    def attempt(self, now_s: float) -> Attempt | float:
        """Pass, or when to ask again, in seconds from now."""
        if self._next_probe_s is None:
            return Attempt(now_s, probe=False)
        if now_s < self._next_probe_s:
            return self._next_probe_s - now_s
        # A probe may take long, and is not waited for: the next one has its own time.
        self._next_probe_s = now_s + self._open_s
        return Attempt(now_s, probe=True)

    def report(self, attempt: Attempt, now_s: float) -> None:
        """How an attempt went. While it is open only probes count: what else ends now was begun
        before."""
        if attempt.ok is False and attempt.began_s >= self._failed_s.get(attempt.worker, -inf):
            attempt.fails_anew, self._failed_s[attempt.worker] = True, now_s
        if self._next_probe_s is not None:
            if attempt.probe:
                self._judge(attempt.ok, now_s)
            return
        if attempt.ok or attempt.fails_anew:
            self._count(ok=not attempt.fails_anew, now_s=now_s)

    def _count(self, *, ok: bool, now_s: float) -> None:
        self._turn(now_s)
        self._now[ok] += 1
        failed, fine = (self._now[i] + self._before[i] for i in (0, 1))
        if failed >= FAILURES_MIN and failed >= FAILURE_SHARE * (failed + fine):
            self._next_probe_s = now_s + self._open_s

    def renewed(self, now_s: float) -> None:
        """Something has come that may be well: the next attempt finds out."""
        if self._next_probe_s is not None:
            self._next_probe_s, self._open_s = now_s, OPEN_FIRST_S

    def _judge(self, ok: bool | None, now_s: float) -> None:
        if ok is None:  # it was not decided: the next one is to
            self._next_probe_s = now_s
        elif ok:
            self._next_probe_s, self._open_s = None, OPEN_FIRST_S
            self._now, self._before = [0, 0], [0, 0]
        else:
            self._open_s = min(OPEN_MAX_S, self._open_s * 2)
            self._next_probe_s = now_s + self._open_s

    def _turn(self, now_s: float) -> None:
        if now_s - self._since_s >= WINDOW_S:
            fresh = now_s - self._since_s < 2 * WINDOW_S
            self._before = self._now if fresh else [0, 0]
            self._now, self._since_s = [0, 0], now_s
            kept_s = now_s - FORGOTTEN_S
            self._failed_s = {who: at_s for who, at_s in self._failed_s.items() if at_s > kept_s}


class Pools:
    """Requests under way by model, at most `requests_max` of each, and their breakers."""

    def __init__(self, requests_max: int, now_s: Callable[[], float]) -> None:
        self.requests_max = requests_max
        self._now_s = now_s
        self._breakers: dict[str, Breaker] = {}
        self._under_way: dict[str, int] = {}

    @contextmanager
    def entered(self, model: str) -> Iterator[None]:
        """A request of this model is under way. Raises `ClientError` (503)."""
        under_way = self._under_way.get(model, 0)
        if under_way >= self.requests_max:
            raise ClientError(
                503,
                f"{under_way} requests for {model!r} are under way, which is all that is let in",
                code="pool_full",
                retry_after_s=FULL_RETRY_S,
            )
        self._under_way[model] = under_way + 1
        try:
            yield
        finally:
            self._under_way[model] -= 1
            if not self._under_way[model]:
                del self._under_way[model]

    def renewed(self, model: str) -> None:
        """A worker of this model has come, or come back."""
        if breaker := self._breakers.get(model):
            breaker.renewed(self._now_s())

    @contextmanager
    def attempt(self, model: str) -> Iterator[Attempt]:
        """An attempt on a worker of this model, judged when it is over. Raises `ClientError`."""
        breaker = self._breakers.setdefault(model, Breaker())
        passed = breaker.attempt(self._now_s())
        if not isinstance(passed, Attempt):
            raise ClientError(
                503,
                f"the engines of {model!r} are failing; none is asked for a moment",
                code="pool_failing",
                retry_after_s=passed,
            )
        try:
            yield passed
        finally:
            breaker.report(passed, self._now_s())
