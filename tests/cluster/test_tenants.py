"""Two tenants and an engine that is too small for both: who asks little does not wait for who asks
much, and neither is served without a key."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

from controlplane.gateway.tenants import key_hash
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("tenants"),
]

FLOOD, FEW = 40, 4
WAITING = 20
"""Requests of the flood that wait in the router before the other tenant comes."""
TENANTS = f"""
[tenants.flood]
keys = ["{key_hash("flood-key")}"]
[tenants.few]
keys = ["{key_hash("few-key")}"]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    directory: Path = tmp_path_factory.mktemp("up")
    (directory / "tenants.toml").write_text(TENANTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENPLANE_GATEWAY__TENANTS", str(directory / "tenants.toml"))
        patch.setenv("TOKENPLANE_ROUTER__BUSY_PREFILL_BATCHES", "0.5")
        with up(directory, "--engines", "1") as running:
            yield running


def served(cluster: UpCluster, tenant: str, number: int, order: list[str]) -> None:
    """A long prompt of its own; notes when it has been answered."""
    prompt = f"{tenant} asks for the {number}. time. " * 150
    body = {"model": cluster.model, "prompt": prompt, "max_tokens": 2}
    answer = httpx.post(
        f"{cluster.url}/v1/completions",
        json=body,
        headers={"authorization": f"Bearer {tenant}-key"},
        timeout=100,
    )
    assert answer.status_code == 200, answer.text
    order.append(tenant)


def test_without_a_key_nobody_is_served(cluster: UpCluster) -> None:
    body = {"model": cluster.model, "prompt": "Hello", "max_tokens": 1}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=20)
    assert answer.status_code == 401


def test_who_asks_little_does_not_wait_for_who_asks_much(cluster: UpCluster) -> None:
    order: list[str] = []
    [router] = cluster.state["routers_admin"]
    with ThreadPoolExecutor(FLOOD + FEW) as pool:
        asked = [pool.submit(served, cluster, "flood", n, order) for n in range(FLOOD)]
        cluster.wait_until(
            lambda: cluster.gauge(router, "tokenplane_router_waiting_requests") >= WAITING,
            "the flood to wait",
        )
        asked += [pool.submit(served, cluster, "few", n, order) for n in range(FEW)]
        for each in asked:
            each.result()
    last_of_few = FLOOD + FEW - order[::-1].index("few")
    assert order[last_of_few:].count("flood") >= WAITING // 2, order
