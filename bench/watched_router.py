"""A router's process like any other, with a watch on its event loop.

`python -m bench.watched_router` takes the settings of `tokenplane router`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import anyio
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry, Gauge

from controlplane.compose import RouterProcess, build_router
from controlplane.runtime.process import Kit, run_command
from controlplane.runtime.service import Service

TICK_S = 0.001
LONGEST_DELAY, LONGEST_RUN = "bench_longest_delay_seconds", "bench_longest_run_seconds"


class LoopWatch:
    """A sleeper that wakes every millisecond.

    How much too late it wakes is what everything, other processes too, has blocked; the processor
    time of its thread meanwhile is what our own code has.
    """

    name = "loop-watch"

    def __init__(self, metrics: CollectorRegistry) -> None:
        self._delay, self._run = Longest(), Longest()
        for name, longest in ((LONGEST_DELAY, self._delay), (LONGEST_RUN, self._run)):
            gauge = Gauge(name, "Since this was last read", registry=metrics)
            gauge.set_function(longest.take)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Watch until cancelled."""
        task_status.started()
        wall, own = time.perf_counter, time.thread_time
        while True:
            due_s, own_before_s = wall() + TICK_S, own()
            await anyio.sleep(TICK_S)
            self._delay.see(wall() - due_s)
            self._run.see(own() - own_before_s)

    async def drain(self) -> None:
        """There is nothing to finish."""


class Longest:
    """The greatest of what was seen since it was last taken."""

    def __init__(self) -> None:
        self._longest = 0.0

    def see(self, figure: float) -> None:
        self._longest = max(self._longest, figure)

    def take(self) -> float:
        longest, self._longest = self._longest, 0.0
        return longest


def build(settings: RouterProcess, kit: Kit) -> Sequence[Service]:
    """A router's services and the watch."""
    return [LoopWatch(kit.metrics), *build_router(settings, kit)]


if __name__ == "__main__":
    sys.exit(run_command("router", RouterProcess, build, sys.argv[1:]))
