"""Every part of a cluster answers as a NATS service; what a planner decides, a scaler does, in one
trace; and a promise is changed while the planner runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import anyio
import nats
import pytest

from tests.support.otlp_receiver import ReceivedSpan, otlp_receiver
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("services"),
]

PARTS = {"agent", "console", "gateway", "planner", "registry", "router", "transfer"}
ANSWERS = {"PING": "ping", "INFO": "info", "STATS": "stats"}
QUIET_S = 1.0


def test_every_part_is_a_service_and_a_scaler_goes_on_with_the_planners_trace(
    tmp_path: Path,
) -> None:
    def scaled(spans: Sequence[ReceivedSpan]) -> bool:
        done = [span for span in spans if span.name == "scaler.scale"]
        ended = any(span.attributes.get("tokenplane.outcome") == "done" for span in done)
        return ended and {deed.parent_id for deed in done} <= {span.span_id for span in spans}

    options = ("--roles", "1P1D", "--planner", "--speed", "10")
    with otlp_receiver() as collector, up(tmp_path, *options, "--otlp", collector.endpoint) as ours:
        for verb, answer in ANSWERS.items():
            told = anyio.run(_ask_all, str(ours.state["nats"]), f"$SRV.{verb}")
            assert {each["type"] for each in told} == {f"io.nats.micro.v1.{answer}_response"}
            assert {str(each["name"]).removeprefix("tokenplane-") for each in told} == PARTS
            if verb != "PING":
                assert all(each["endpoints"] for each in told)

        ours.tokenplane("config", "set", "planner.least", "2", "--cluster", "test")
        spans = collector.wait_for(scaled, timeout_s=90)
        ours.wait_until(lambda: _agents(ours) == 4, "two workers of each role")

    deed = next(s for s in spans if s.name == "scaler.scale")
    tick = next(s for s in spans if s.span_id == deed.parent_id)
    assert (tick.service, tick.name, tick.trace_id) == ("planner", "planner.tick", deed.trace_id)
    assert (deed.service, deed.attributes["tokenplane.wanted"]) == ("up", 2)
    assert deed.attributes["tokenplane.reason"] == "minimum"


async def _ask_all(server: str, subject: str) -> list[dict[str, object]]:
    """All answers, until nobody has said anything for a while."""
    client = await nats.connect(server)
    try:
        inbox = client.new_inbox()
        answers = await client.subscribe(inbox)
        await client.publish(subject, reply=inbox)
        told: list[dict[str, object]] = []
        while True:
            try:
                told.append(json.loads((await answers.next_msg(timeout=QUIET_S)).data))
            except nats.errors.TimeoutError:
                return told
    finally:
        await client.close()


def _agents(cluster: UpCluster) -> int:
    """That run and are ready."""
    children = cluster.state["children"].items()
    return sum(name.startswith("agent-") and child["ready"] for name, child in children)
