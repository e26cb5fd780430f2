"""Cached prefixes that move: fetched for a request, copied as they are hot, saved from a drain."""

from __future__ import annotations

import itertools
import json
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("moves"),
]

TOKENS = 6000
ELSEWHERE = {"x-tokenplane-policy": "round_robin"}
seeds = itertools.count(1)


class Answer(NamedTuple):
    worker: str
    cached_tokens: int


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    # A machine that is busy with other tests may copy slowly, and ask seldom.
    with up(
        tmp_path_factory.mktemp("up"),
        *("--engines", "2", "--moves"),
        TOKENPLANE_GATEWAY__FETCH_S="20",
        TOKENPLANE_ROUTER__REPLICATE_PER_S="0.3",
    ) as running:
        yield running


def prompt() -> list[int]:
    """One that nobody has seen."""
    seed = next(seeds)
    return [7 + (n * n + n * seed) % 90 for n in range(TOKENS)]


def ask(cluster: UpCluster, tokens: list[int], **headers: str) -> Answer:
    body = {"model": cluster.model, "prompt": tokens, "max_tokens": 2, "ignore_eos": True}
    request = urllib.request.Request(
        cluster.url + "/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json", **headers},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        usage = json.loads(answer.read())["usage"]
        worker = answer.headers["x-tokenplane-worker"]
    return Answer(worker, usage["prompt_tokens_details"]["cached_tokens"])


def ask_another(cluster: UpCluster, tokens: list[int], worker: str) -> Answer:
    """In turns, until somebody else answers."""
    while True:
        answer = ask(cluster, tokens, **ELSEWHERE)
        if answer.worker != worker:
            return answer


def fetched(cluster: UpCluster) -> float:
    name = 'tokenplane_gateway_prefix_fetches_total{outcome="moved"}'
    return cluster.gauge(cluster.state["gateway_admin"], name)


def copied(cluster: UpCluster) -> float:
    name = 'tokenplane_router_replications_total{outcome="copied"}'
    return sum(cluster.gauge(url, name) for url in cluster.state["routers_admin"])


def test_kr5_a_request_fetches_what_its_worker_lacks(cluster: UpCluster) -> None:
    found: list[Answer] = []

    def was_fetched() -> bool:  # not before it is known how fast engines compute
        tokens = prompt()
        first = ask(cluster, tokens)
        before = fetched(cluster)
        found.append(ask_another(cluster, tokens, first.worker))
        return fetched(cluster) > before

    cluster.wait_until(was_fetched, "a prefix to be fetched")
    assert found[-1].cached_tokens == TOKENS - 16  # the last block is computed again


def test_a_hot_prefix_gets_another_holder_whom_no_request_went_to(cluster: UpCluster) -> None:
    tokens, before, fetches = prompt(), copied(cluster), fetched(cluster)
    holder = ask(cluster, tokens).worker

    def was_copied() -> bool:
        answer = ask(cluster, tokens)  # of another worker only if the copy is there already
        assert answer.worker == holder or answer.cached_tokens > TOKENS // 2
        return copied(cluster) > before

    cluster.wait_until(was_copied, "a prefix that is hot to be copied")
    assert ask_another(cluster, tokens, holder).cached_tokens > TOKENS // 2
    assert fetched(cluster) == fetches  # it was there, and the router knew


def evacuations(cluster: UpCluster, agent: str) -> dict[str, float]:
    """How many ended how, by the agent's own count."""
    total = "tokenplane_agent_evacuations_total"
    every = ("moved", "stays", "nothing", "late", "engine_away", "no_coordinator")
    counts = {each: cluster.gauge(agent, f'{total}{{outcome="{each}"}}') for each in every}
    return {outcome: count for outcome, count in counts.items() if count}


def test_a_drained_worker_leaves_its_blocks_to_others(cluster: UpCluster) -> None:
    tokens = prompt()
    holder = ask(cluster, tokens).worker
    agents = dict(zip(("engine-0", "engine-1"), cluster.state["agents_admin"], strict=True))
    cluster.tokenplane("drain", holder, "--cluster", "test", "--wait_s", "60")
    assert evacuations(cluster, agents[holder]) == {"moved": 1}
    fetches = fetched(cluster)
    answer = ask(cluster, tokens)
    assert answer.worker != holder and answer.cached_tokens > TOKENS - 32
    assert fetched(cluster) == fetches
    cluster.tokenplane("drain", holder, "--cluster", "test", "--undo")
