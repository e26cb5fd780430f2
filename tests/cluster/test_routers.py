"""Three routers share a cluster's requests; one of them is killed under load."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import anyio
import pytest

from controlplane.replay.live import LiveTarget, run_live
from controlplane.replay.report import Run, Status
from controlplane.replay.trace import TraceRequest
from proto.wire.http import HttpClient
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("routers"),
]

ENGINES, ROUTERS = 4, 3
STEMS, REQUESTS, PER_S = 16, 400, 50.0
STEM_BLOCKS, BLOCK_TOKENS = 2, 512
UNANSWERED = 20
"""Requests that end between its freezing and its death; about half as many it leaves behind."""
TAIL_TOKENS = 64
"""Each request's own part of its prompt, after a stem that it shares."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    options = ("--engines", str(ENGINES), "--routers", str(ROUTERS), "--speed", "10")
    with up(tmp_path_factory.mktemp("up"), *options) as running:
        yield running


def trace() -> list[TraceRequest]:
    rng = random.Random(0)
    requests = []
    for number in range(REQUESTS):
        stem = rng.randrange(STEMS) * STEM_BLOCKS
        ids = (*range(stem, stem + STEM_BLOCKS), STEMS * STEM_BLOCKS + number)
        tokens = STEM_BLOCKS * BLOCK_TOKENS + TAIL_TOKENS
        requests.append(TraceRequest(number / PER_S, tokens, 8, ids))
    return requests


def run(cluster: UpCluster, salt: int, victim: str | None = None) -> Run:
    """The whole trace, in tokens that no run before has had; in the middle `victim` is killed,
    with questions that it has been asked and will not answer."""

    def on_ended(count: int) -> None:
        if victim is not None and count == REQUESTS // 2:
            cluster.freeze(victim)
        if victim is not None and count == REQUESTS // 2 + UNANSWERED:
            cluster.kill(victim)

    async def play() -> Run:
        target = LiveTarget(cluster.url, cluster.model, "", block_tokens=16, salt=salt)
        async with HttpClient() as http:
            return await run_live(http, target, trace(), on_ended)

    return anyio.run(play)


def hit_rate(run: Run) -> float:
    return sum(o.cached_blocks for o in run.outcomes) / sum(o.prompt_blocks for o in run.outcomes)


def test_killing_one_of_three_routers_fails_nothing_and_costs_no_hits(
    cluster: UpCluster, record_property: Callable[[str, object], None]
) -> None:
    undisturbed = run(cluster, salt=1)
    restarts = cluster.restarts("router-1")
    killed = run(cluster, salt=2, victim="router-1")
    for each in (undisturbed, killed):
        assert [o.detail for o in each.outcomes if o.status is not Status.COMPLETED] == []
    rates = hit_rate(undisturbed), hit_rate(killed)
    record_property("hit rate, undisturbed and with a router killed", rates)
    assert rates[1] == pytest.approx(rates[0], rel=0.05)
    # Nothing was placed without a router: who had asked the dead one asked another.
    admin = cluster.state["gateway_admin"]
    assert cluster.gauge(admin, "tokenplane_gateway_route_asked_again_total") > 0
    assert cluster.gauge(admin, "tokenplane_gateway_route_fallbacks_total") == 0
    cluster.wait_until(lambda: cluster.restarts("router-1") > restarts, "it to be started again")
    cluster.wait_ready()
