"""What is the same in every trial of a cluster under load: when it is over, what must hold then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import anyio
import anyio.to_thread
import psutil

from proto.wire.http.client import KEPT_ALIVE_S
from tests.chaos.load import Load, Verdict, predicted_and_actual
from tests.support.up import UpCluster

CALM_STREAMS = 40
"""So many whole streams in a row, begun after the trouble, and it is over."""
RECOVERY_S_MAX = 60.0
HELD = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting"),
    *("vllm:kv_cache_usage_perc", "sim:kv_staged_requests"),
)
"""Gauges of an engine that are zero when nobody wants anything of it."""
DESCRIPTORS_MORE = 12
"""Connections that were not needed yet at the first count."""
GIVEN_BACK_S = 2 * KEPT_ALIVE_S

Descriptors = dict[tuple[str, int], int]
"""By the name and the id of a process."""


@dataclass(frozen=True)
class Row:
    """What came of one trouble."""

    recovered_s: float
    verdicts: Counter[Verdict]

    def __str__(self) -> str:
        return f"last trouble after {self.recovered_s:5.1f} s   {told(self.verdicts)}"


async def suffer(load: Load, trouble: Callable[[], Awaitable[None]]) -> Row:
    """Let it happen under load, and wait until streams are whole again."""
    began_s = time.monotonic()
    await trouble()
    over_s = time.monotonic()
    with anyio.fail_after(RECOVERY_S_MAX):
        while not _calm(load, over_s):
            await load.next_end()
    disturbed = [e.at_s for e in load.since(began_s) if e.verdict is not Verdict.WHOLE]
    return Row(max([0.0, *(at_s - began_s for at_s in disturbed)]), load.count(began_s))


def judge(load: Load, row: Row, what: str, *, gateway_hit: bool) -> None:
    """Nothing wrong was said; and connections may only break where the gateway died."""
    wrong = [each.detail for each in load.ended if each.verdict is Verdict.WRONG]
    assert wrong == [], f"after {what}"
    if not gateway_hit:
        lost = row.verdicts[Verdict.CUT] + row.verdicts[Verdict.UNREACHABLE]
        assert lost == 0, f"streams were lost, and it was not the gateway: {what}"


async def nothing_left(cluster: UpCluster, load: Load, before: Descriptors) -> None:
    """No slot is taken, caches are what the router believes, descriptors are as many as `before`.
    The load must have been stopped."""
    await at_rest(cluster)
    for question in load.questions:
        await predicted_and_actual(load, question)
    for question in load.questions:
        # A prompt that was just asked is in some cache whole, and the router knows in which.
        predicted, actual = await predicted_and_actual(load, question)
        assert predicted == actual > 0
    await descriptors_given_back(cluster, before)


async def at_rest(cluster: UpCluster) -> None:
    """Until no request is in flight, and no engine computes or holds anything for anybody."""
    admin, engines = cluster.state["gateway_admin"], cluster.state["engines"]

    def quiet() -> bool:
        in_flight = cluster.gauge(admin, "tokenplane_gateway_requests_in_flight")
        held = [cluster.gauge(url, name) for url in engines for name in HELD]
        return in_flight == 0 and not any(held)

    await anyio.to_thread.run_sync(partial(cluster.wait_until, quiet, "all to be let go"))


async def descriptors_given_back(cluster: UpCluster, before: Descriptors) -> None:
    """Processes that lived all the time come to have as many as then, and a few: connections that
    are kept for a next request are closed when none comes."""
    grown: dict[str, int] = {}
    with anyio.move_on_after(GIVEN_BACK_S):
        while True:
            after = descriptors(cluster)
            grown = {of[0]: after[of] - before[of] for of in before.keys() & after.keys()}
            if all(more <= DESCRIPTORS_MORE for more in grown.values()):
                return
            await anyio.sleep(1.0)
    raise AssertionError(f"more descriptors than before, after {GIVEN_BACK_S:g} s: {grown}")


def descriptors(cluster: UpCluster) -> Descriptors:
    """Open file descriptors of each process of the cluster."""
    processes = {"up": cluster.process.pid, **cluster.pids()}
    return {(name, pid): psutil.Process(pid).num_fds() for name, pid in processes.items()}


def told(verdicts: Counter[Verdict]) -> str:
    """For people."""
    return ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))


def _calm(load: Load, since_s: float) -> bool:
    latest = [each for each in load.ended if each.began_s >= since_s][-CALM_STREAMS:]
    return len(latest) == CALM_STREAMS and all(e.verdict is Verdict.WHOLE for e in latest)
