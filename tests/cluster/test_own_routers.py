"""Gateways that decide by themselves: each with a router in its process, and no other there is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.asking import ask
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("own-routers"),
]

ENGINES, GATEWAYS = 3, 2
DECISIONS = "tokenplane_router_decisions_total"
FALLBACKS = "tokenplane_gateway_route_fallbacks_total"
AGAIN = 12
new_numbers = count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    words = ("--engines", str(ENGINES), "--routers", "0", "--gateways", str(GATEWAYS))
    with up(tmp_path_factory.mktemp("up"), *words, "--speed", "10") as running:
        yield running


def new_prompt() -> str:
    return f"Number {next(new_numbers)}. " + "Nobody else has to be asked. " * 100


def decisions(cluster: UpCluster) -> list[float]:
    return [cluster.gauge(admin, DECISIONS) for admin in cluster.state["gateway_admins"]]


def test_each_process_decides_and_knows_what_the_other_has_caused(cluster: UpCluster) -> None:
    assert not [name for name in cluster.state["children"] if name.startswith("router")]
    before, prompt = decisions(cluster), new_prompt()
    first = ask(cluster, prompt)

    def known_to_both() -> bool:
        answers = [ask(cluster, prompt) for _ in range(AGAIN)]
        return all(a.worker == first.worker and a.expected_tokens > 0 for a in answers)

    cluster.wait_until(known_to_both, "both to send the prompt where it is cached")
    after = decisions(cluster)
    assert all(now > then for now, then in zip(after, before, strict=True))
    assert not sum(cluster.gauge(admin, FALLBACKS) for admin in cluster.state["gateway_admins"])


def test_its_decisions_are_explained_as_those_of_any_router(cluster: UpCluster) -> None:
    answer = ask(cluster, new_prompt())
    told = cluster.tokenplane("explain", answer.request, "--cluster", "test")
    assert answer.worker in told.stdout
    assert cluster.tokenplane("doctor", "--cluster", "test").stdout


def test_without_nats_it_goes_on_by_what_it_knows(cluster: UpCluster) -> None:
    prompt = new_prompt()
    home = ask(cluster, prompt).worker
    cluster.wait_until(lambda: ask(cluster, prompt).expected_tokens > 0, "the prompt to be known")
    with cluster.frozen("nats"):
        answers = [ask(cluster, prompt) for _ in range(AGAIN)]
    assert {answer.worker for answer in answers} == {home}
    assert {answer.policy for answer in answers} == {"kv"}
    assert all(answer.expected_tokens > 0 for answer in answers)


def test_one_that_is_killed_is_started_again_and_learns_what_is_cached(cluster: UpCluster) -> None:
    prompt = new_prompt()
    home = ask(cluster, prompt).worker
    restarts = cluster.restarts("gateway-2")
    cluster.kill("gateway-2")
    cluster.wait_until(lambda: cluster.restarts("gateway-2") > restarts, "it to be started again")
    cluster.wait_ready()
    before = decisions(cluster)

    def found_by_both() -> bool:
        answer = ask(cluster, prompt)
        assert answer.worker == home
        return all(now > then for now, then in zip(decisions(cluster), before, strict=True))

    cluster.wait_until(found_by_both, "both to have decided again")
