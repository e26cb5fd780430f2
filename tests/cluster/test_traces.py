"""One trace covers a request from the gateway through the router to the engine's agent."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.support.up import up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("traces"),
]

CLIENTS_TRACE = "0af7651916cd43dd8448eb211c80319c"
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
