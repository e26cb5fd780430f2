"""What becomes of requests when more are asked for than engines can serve.

What is admitted is served as fast as before, and whole; what is not is refused with a typed error
that says when to come again; and as much is served as without overload.
"""

from __future__ import annotations

import json
import os
import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from bench.measure import percentile
from controlplane.local.cluster import LocalCluster, run_cluster
from controlplane.local.options import ClusterOptions
from proto.wire.errors import HttpError
from proto.wire.http import HttpClient
from proto.wire.ports import Http, HttpTimeouts

ENGINES = 2
SPEED = 0.5
"""Slow engines: this machine has work to spare when they have none."""
PROMPT, OUTPUT_TOKENS = "A token waits in a long queue. " * 120, 32
QUEUE_S = 4.0
SETTINGS = {
    "TOKENPLANE_GATEWAY__QUEUE_S": str(QUEUE_S),
    "TOKENPLANE_ROUTER__BUSY_PREFILL_BATCHES": "2",
    "TOKENPLANE_ROUTER__WAITING_MAX": "64",
}
"""A service that would rather refuse than let wait."""
CALLERS_MOST = 48
WARM_S, LEVEL_S = 10.0, 20.0
SHARES = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
GOODPUT_LEAST = 0.85
"""Of what was served at capacity, that must be served under any overload."""
FIRST_MOST_S = 2 * QUEUE_S
"""An admitted request waits in the router's queue and in that of an engine."""
TIMEOUTS = HttpTimeouts(connect_s=10.0, first_byte_s=60.0, idle_s=60.0)
REFUSALS = (429, 503)


@dataclass(frozen=True)
class Answered:
    """What came of a level of load."""

    asked: float
    """As a share of capacity."""
    sent: int
    served_per_s: float
    refused_per_s: float
    refusals: Mapping[str, int]
    """By code."""
    other: Mapping[str, int]
    """Neither served nor refused as it should be."""
    first_p50_s: float
    first_p99_s: float

    def faults(self, all_: Sequence[Answered]) -> list[str]:
        """What is not as it should be, beside the other levels."""
        found = [f"{count} requests came to {what}" for what, count in self.other.items()]
        best = max(load.served_per_s for load in all_ if load.asked <= 1)
        if self.asked >= 1 and self.served_per_s < GOODPUT_LEAST * best:
            found.append(f"at {self.asked:g} only {self.served_per_s:.1f} a second were served")
        if self.first_p99_s > FIRST_MOST_S:
            found.append(f"at {self.asked:g} who was served waited for {self.first_p99_s:.1f} s")
        return found


@dataclass(frozen=True)
class _End:
    """Of one request."""

    what: str
    first_s: float = 0.0


async def overload(seed: int) -> list[Answered]:
    """Each share of capacity, one after the other."""
    rng = random.Random(seed)
    options = ClusterOptions(name="overload", port=0, engines=ENGINES, speed=SPEED)
    os.environ.update(SETTINGS)
    answered = []
    async with HttpClient() as http, run_cluster(options, http) as cluster:
        capacity_per_s = await _capacity(http, cluster, rng)
        print(
            f"{capacity_per_s:.1f} requests a second are served at the most\n\n{HEAD}", flush=True
        )
        for share in SHARES:
            ends = await _arrivals(http, cluster, share * capacity_per_s, rng)
            answered.append(_summed_up(share, ends))
            print(_line(answered[-1]), flush=True)
    return answered


async def _capacity(http: Http, cluster: LocalCluster, rng: random.Random) -> float:
    """Requests a second with enough clients that wait for their turn."""
    ends: list[_End] = []

    async def client() -> None:
        while True:
            ends.append(await _ask(http, cluster, rng.random()))

    async with anyio.create_task_group() as tasks:
        for _ in range(CALLERS_MOST):
            tasks.start_soon(client)
        await anyio.sleep(WARM_S)
        ends.clear()
        await anyio.sleep(LEVEL_S)
        served = sum(end.what == "served" for end in ends)
        tasks.cancel_scope.cancel()
    return served / LEVEL_S


async def _arrivals(
    http: Http, cluster: LocalCluster, per_s: float, rng: random.Random
) -> list[_End]:
    """Requests that begin at random moments, whatever became of those before; all have ended."""
    ends: list[_End] = []

    async def one() -> None:
        ends.append(await _ask(http, cluster, rng.random()))

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(LEVEL_S):
            while True:
                await anyio.sleep(rng.expovariate(per_s))
                tasks.start_soon(one)
    return ends


async def _ask(http: Http, cluster: LocalCluster, salt: float) -> _End:
    """One stream, whose prompt no cache has."""
    body = {
        "model": cluster.model,
        "prompt": f"{salt} {PROMPT}",
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    url, headers = f"{cluster.url}/v1/completions", {"content-type": "application/json"}
    exchange = partial(http.exchange, "POST", url, headers=headers, timeouts=TIMEOUTS)
    began_s = anyio.current_time()
    try:
        async with exchange(body=json.dumps(body).encode()) as answer:
            if answer.status in REFUSALS:
                error = json.loads(await answer.read(limit_bytes=1 << 16))["error"]["code"]
                later = "retry-after" in answer.headers
                return _End(f"refused: {error}" if later else f"{error} without Retry-After")
            first_s, said = 0.0, b""
            async for chunk in answer.chunks():
                first_s = first_s or anyio.current_time() - began_s
                said = (said + chunk)[-64:]
            whole = answer.status == 200 and said.rstrip().endswith(b"data: [DONE]")
            return _End("served", first_s) if whole else _End(f"HTTP {answer.status}, not whole")
    except HttpError as error:
        return _End(type(error).__name__)


def _summed_up(share: float, ends: Sequence[_End]) -> Answered:
    counts = Counter(end.what for end in ends)
    refusals = {what: n for what, n in counts.items() if what.startswith("refused: ")}
    firsts = [end.first_s for end in ends if end.what == "served"] or [0.0]
    return Answered(
        asked=share,
        sent=len(ends),
        served_per_s=counts["served"] / LEVEL_S,
        refused_per_s=sum(refusals.values()) / LEVEL_S,
        refusals={what.removeprefix("refused: "): n for what, n in refusals.items()},
        other={w: n for w, n in counts.items() if w != "served" and w not in refusals},
        first_p50_s=statistics.median(firsts),
        first_p99_s=percentile(firsts, 0.99),
    )


HEAD = (
    "| asked, of capacity | sent | served a second | refused a second | as | to the first, p50 s "
    "| p99 |\n| --: | --: | --: | --: | --- | --: | --: |"
)


def _line(load: Answered) -> str:
    told = ", ".join(f"{count} {code}" for code, count in sorted(load.refusals.items())) or "-"
    return (
        f"| {load.asked:g} | {load.sent} | {load.served_per_s:.1f} | {load.refused_per_s:.1f} | "
        f"{told} | {load.first_p50_s:.2f} | {load.first_p99_s:.2f} |"
    )
