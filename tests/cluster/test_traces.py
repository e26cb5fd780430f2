"""One trace covers a request from the gateway through the router to the engine's agent."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from controlplane.runtime.traces import Span, tree
from tests.support.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("traces"),
]

CLIENTS_TRACE = "0af7651916cd43dd8448eb211c80319c"
LEGS = ("gateway.prefill", "gateway.engine")
CLIENTS_SPAN = "b7ad6b7169203331"
EXPECTED = {
    "gateway.request": ("gateway", CLIENTS_SPAN),
    "gateway.admit": ("gateway", "gateway.request"),
    "gateway.tokenize": ("gateway", "gateway.request"),
    "gateway.route": ("gateway", "gateway.request"),
    "router.decide": ("router", "gateway.route"),
    "gateway.engine": ("gateway", "gateway.request"),
    "agent.request": ("agent", "gateway.engine"),
}
"""Name of each span, the service it comes from, and its parent."""


def test_one_trace_covers_gateway_router_and_agent(tmp_path: Path) -> None:
    def whole(spans: Sequence[ReceivedSpan]) -> bool:
        return set(EXPECTED) <= {s.name for s in spans if s.trace_id == CLIENTS_TRACE}

    with (
        otlp_receiver() as collector,
        up(tmp_path, "--engines", "1", "--speed", "10", "--otlp", collector.endpoint) as cluster,
    ):
        request = urllib.request.Request(
            f"{cluster.url}/v1/completions",
            json.dumps({"model": cluster.model, "prompt": "Hi", "max_tokens": 3}).encode(),
            {
                "content-type": "application/json",
                "traceparent": f"00-{CLIENTS_TRACE}-{CLIENTS_SPAN}-01",
            },
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.status == 200
        spans = collector.wait_for(whole, timeout_s=20)

    ours = {span.name: span for span in spans if span.trace_id == CLIENTS_TRACE}
    assert set(ours) == set(EXPECTED)
    for name, (service, parent) in EXPECTED.items():
        assert ours[name].service == service
        assert ours[name].parent_id == (ours[parent].span_id if parent in ours else parent)
    whole_request = ours["gateway.request"].attributes
    assert whole_request["gen_ai.usage.output_tokens"] == 3
    assert whole_request["tokenplane.outcome"] == "completed"
    assert whole_request["tokenplane.tenant"] == "anonymous"
    assert whole_request["tokenplane.policy"] == "kv"
    assert str(whole_request["tokenplane.engine"]).startswith("sim/")
    assert str(whole_request["tokenplane.router"]).startswith("router-")
    assert ours["router.decide"].attributes["tokenplane.worker"] == "engine-0"
    assert ours["agent.request"].attributes["tokenplane.worker"] == "engine-0"


def test_an_answer_that_goes_on_elsewhere_is_in_one_trace_with_both_engines(tmp_path: Path) -> None:
    """Read back by `tokenplane trace` from where `tokenplane up` keeps spans."""
    with up(tmp_path, "--engines", "2", "--speed", "0.25") as cluster:
        body = {
            "model": cluster.model,
            "prompt": "Tell the whole story. " * 20,
            "max_tokens": 600,
            "ignore_eos": True,
            "stream": True,
        }
        request = urllib.request.Request(
            f"{cluster.url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            name = response.headers["x-request-id"]
            for _ in range(8):
                response.readline()
            busy = response.headers["x-tokenplane-worker"]
            cluster.kill(busy)
            assert b"data: [DONE]" in response.read()

        spans = traced(cluster, name)
        assert len({span.trace for span in spans}) == 1
        (root,) = tree(spans)
        assert root.span.name == "gateway.request"
        assert root.span.attributes["tokenplane.attempts"] == 2
        engines = [node for node in root.children if node.span.name == "gateway.engine"]
        assert [node.span.attributes["tokenplane.attempt"] for node in engines] == [1, 2]
        assert engines[0].span.attributes["tokenplane.worker"] == busy
        heard = [[child.span.name for child in node.children] for node in engines]
        assert heard == [["agent.request"], ["agent.request"]]
        routes = [node for node in root.children if node.span.name == "gateway.route"]
        assert [[c.span.name for c in node.children] for node in routes] == [["router.decide"]] * 2


def test_a_request_in_two_legs_is_one_trace_with_its_transfer(tmp_path: Path) -> None:
    with up(tmp_path, "--roles", "1P1D", "--speed", "4") as cluster:
        body = {
            "model": cluster.model,
            "prompt": " ".join(f"word{number}" for number in range(900)),
            "max_tokens": 10,
        }
        request = urllib.request.Request(
            f"{cluster.url}/v1/completions",
            json.dumps(body).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            spans = traced(cluster, response.headers["x-request-id"])

    names = {span.id: span.name for span in spans}
    below = {(span.name, names.get(span.parent, "")) for span in spans}
    assert below >= {
        ("transfer.reserve", "gateway.request"),
        ("gateway.prefill", "gateway.request"),
        ("agent.request", "gateway.prefill"),
        ("transfer.staged", "gateway.request"),
        ("gateway.transfer", "gateway.request"),
        ("gateway.engine", "gateway.request"),
        ("agent.request", "gateway.engine"),
        ("gateway.decode", "gateway.engine"),
    }
    assert {span.trace for span in spans} == {spans[0].trace}
    legs = {s.name: s.attributes["tokenplane.worker"] for s in spans if s.name in LEGS}
    assert legs == {"gateway.prefill": "engine-0", "gateway.engine": "engine-1"}


def traced(cluster: UpCluster, request: str) -> list[Span]:
    """Spans of a request, once both its ends and both its agents' have come."""
    found: list[Span] = []

    def whole() -> bool:
        words = ("trace", request, "--cluster", "test", "--json", "--wait_s", "20")
        said = cluster.tokenplane(*words).stdout
        found[:] = msgspec.json.decode(said, type=list[Span])
        return sum(span.name == "agent.request" for span in found) == 2

    cluster.wait_until(whole, "all spans of the request")
    return found
