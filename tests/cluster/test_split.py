"""A split fleet as a user starts it: one answer, one trace, and nothing left when many leave."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("split"),
]

HELD = 1488
"""Tokens of the whole blocks before the last token of 1,500."""
LEAVE_S = 0.15
CLIENTS = 24


@pytest.fixture(scope="module")
def traces() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, traces: OtlpReceiver) -> Iterator[UpCluster]:
    words = ("--roles", "1P1D", "--prefill", "remote", "--otlp", traces.endpoint)
    with up(tmp_path_factory.mktemp("up"), *words) as running:
        yield running


def ask(cluster: UpCluster, seed: int, tokens: int = 1500, *, timeout_s: float = 60.0) -> Any:
    body = {
        "model": cluster.model,
        "prompt": [7 + (n * seed) % 90 for n in range(tokens)],
        "max_tokens": 8,
        "ignore_eos": True,
    }
    request = urllib.request.Request(
        cluster.url + "/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        return json.loads(answer.read())


def at_rest(cluster: UpCluster) -> bool:
    """No engine holds anything for anybody, and no ticket is open."""
    gauges = ("vllm:kv_cache_usage_perc", "sim:kv_staged_requests", "vllm:num_requests_running")
    return not any(cluster.gauge(url, name) for url in cluster.state["engines"] for name in gauges)


def test_one_trace_tells_all_of_a_request(cluster: UpCluster, traces: OtlpReceiver) -> None:
    ask(cluster, 3)
    wanted = {
        "gateway.request",
        "gateway.route",
        "transfer.reserve",
        "gateway.prefill",
        "transfer.staged",
        "gateway.transfer",
        "gateway.decode",
    }
    cluster.wait_until(
        lambda: any(wanted <= names for names in _names_by_trace(traces).values()),
        f"one trace with {sorted(wanted)}",
    )
    cluster.wait_until(lambda: at_rest(cluster), "every block to be let go")


def test_dg28_many_leave_in_the_middle_and_the_next_one_is_served(cluster: UpCluster) -> None:
    def leave(seed: int) -> None:
        with pytest.raises(TimeoutError):
            ask(cluster, seed, 12_000, timeout_s=LEAVE_S)

    clients = [threading.Thread(target=leave, args=(seed,)) for seed in range(5, 5 + CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert len(ask(cluster, 101)["choices"][0]["text"]) > 0
    cluster.wait_until(lambda: at_rest(cluster), "blocks back to where they were")


def test_what_was_cached_is_what_the_prefilling_engine_had(
    cluster: UpCluster, traces: OtlpReceiver
) -> None:
    """Whoever decodes gets the blocks from elsewhere, and counts them its own way or not at all."""
    ask(cluster, 11)
    _, decoding = cluster.state["engines"]
    assert httpx.post(f"{decoding}/reset_prefix_cache").status_code == 200
    answer = ask(cluster, 11)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] < HELD
    cluster.wait_until(lambda: HELD in _cached(traces), f"a request with {HELD} cached tokens")


def _cached(traces: OtlpReceiver) -> list[object]:
    name = "gen_ai.usage.cache_read.input_tokens"
    return [span.attributes.get(name) for span in traces.spans if span.name == "gateway.request"]


def _names_by_trace(traces: OtlpReceiver) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for span in traces.spans:
        found.setdefault(span.trace_id, set()).add(span.name)
    return found
