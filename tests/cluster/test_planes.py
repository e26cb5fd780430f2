"""CP6: requests, control and state go separate ways, and each may be lost without the others.

A whole cluster, whose events, planner, etcd and NATS go away one after the other and come back.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import anyio
import pytest

from controlplane.gateway.routing import FALLBACK
from tests.chaos.linked import COMMAND, Links
from tests.support.asking import ask
from tests.support.link import Trouble
from tests.support.up import PATIENCE_S, UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("planes"),
]

ENGINES = 2
REGISTRY_STALE = "tokenplane_registry_stale"
new_numbers = count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    words = ("--engines", str(ENGINES), "--speed", "10", "--planner")
    with up(
        tmp_path_factory.mktemp("up"),
        *words,
        ready_s=PATIENCE_S,
        command=COMMAND,
        TOKENPLANE_PLANNER__LEAST="2",
    ) as running:
        yield running


def new_prompt() -> str:
    """One that nobody has asked before, long enough to be told apart in any cache."""
    return f"Number {next(new_numbers)}. " + "A token went over the wire. " * 300


def routed(cluster: UpCluster) -> bool:
    """A router has decided."""
    return ask(cluster, "Who?").policy != FALLBACK


def test_cp6_events_down_routing_goes_by_its_own_decisions(cluster: UpCluster) -> None:
    """No agent is heard any more: a prompt is expected where it was sent before."""
    links = Links(cluster)
    agents = [f"agent-{number}>nats" for number in range(ENGINES)]
    [router] = cluster.state["routers_admin"]

    def be(trouble: Trouble | None) -> None:
        for link in agents:
            anyio.run(links.be, link, trouble)

    def guesses() -> bool:
        prompt = new_prompt()
        first, second = ask(cluster, prompt), ask(cluster, prompt)
        assert first.policy != FALLBACK
        return second.worker == first.worker and 0 < second.expected_tokens <= second.cached_tokens

    before = cluster.gauge(router, "tokenplane_router_kv_batches_total")
    be(Trouble.HELD)
    try:
        cluster.wait_until(guesses, "decisions by guesses")
    finally:
        be(None)
    cluster.wait_ready()
    told = lambda: cluster.gauge(router, "tokenplane_router_kv_batches_total") > before  # noqa: E731
    cluster.wait_until(told, "events to be heard again")


def test_cp6_planner_down_serving_goes_on(cluster: UpCluster) -> None:
    with cluster.frozen("planner"):
        assert all(ask(cluster, new_prompt()).policy != FALLBACK for _ in range(8))
    cluster.kill("planner")
    assert all(ask(cluster, new_prompt()).policy != FALLBACK for _ in range(8))
    cluster.wait_ready()


def test_cp6_etcd_down_the_last_topology_serves_and_is_flagged(cluster: UpCluster) -> None:
    registry = cluster.state["registry_admin"]

    def stale() -> bool:
        return cluster.gauge(registry, REGISTRY_STALE) == 1

    assert not stale()
    with cluster.frozen("etcd"):
        cluster.wait_until(stale, "the registry to say that its view is old")
        served = [ask(cluster, new_prompt()) for _ in range(8)]
        assert all(answer.policy != FALLBACK for answer in served)
    cluster.wait_until(lambda: not stale(), "the view to be fed again")
    cluster.wait_ready()


def test_cp6_bus_down_the_gateway_serves_by_its_last_view_and_routers_come_back(
    cluster: UpCluster,
) -> None:
    with cluster.frozen("nats"):
        cluster.wait_until(lambda: not routed(cluster), "a request that no router has seen")
        served = [ask(cluster, "Who?") for _ in range(4)]
        assert {answer.policy for answer in served} == {FALLBACK}
    cluster.wait_until(lambda: routed(cluster), "a router to decide again")
    cluster.wait_ready()
    prompt = new_prompt()
    ask(cluster, prompt)
    known = lambda: ask(cluster, prompt).expected_tokens > 0  # noqa: E731
    cluster.wait_until(known, "the index to be true again")
