"""What a cluster in containers must stand (CP18), in the order of a user's day."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlencode

import httpx2
import pytest

from tests.compose.cluster import ComposeCluster, get_json, until
from tests.unit.deploy.test_observability import expressions

pytestmark = pytest.mark.timeout(600)

TOKENS = 60
PROCESSES = {"gateway", "router", "worker", "registry", "transfer", "planner", "console"}
WHOLE_TRACE = {
    "gateway.request",
    "gateway.route",
    "router.decide",
    "gateway.engine",
    "agent.request",
}
TYPED = {"engine_lost", "engine_unreachable", "engine_silent", "deadline"}


class Stream:
    """A streamed answer as it comes."""

    def __init__(self, response: httpx2.Response) -> None:
        self.worker = response.headers["x-tokenplane-worker"]
        self.policy = response.headers["x-tokenplane-policy"]
        self._lines = response.iter_lines()
        self.ended = ""
        """`done`, or the code of the error that it ended with."""

    def pieces(self) -> Iterator[str]:
        for line in self._lines:
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                self.ended = "done"
                return
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                self.ended = event["error"]["code"]
                return
            if event["choices"]:
                yield event["choices"][0].get("text", "")


@contextmanager
def _stream(
    cluster: ComposeCluster, prompt: str, tokens: int = TOKENS, **headers: str
) -> Iterator[Stream]:
    body = {
        "model": "sim",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
    }
    url = f"{cluster.url('GATEWAY_PORT')}/v1/completions"
    with httpx2.stream("POST", url, json=body, headers=headers, timeout=60) as response:
        assert response.status_code == 200, response.read()
        yield Stream(response)


def _text(cluster: ComposeCluster, prompt: str, tokens: int = TOKENS) -> tuple[Stream, str]:
    with _stream(cluster, prompt, tokens) as stream:
        text = "".join(stream.pieces())
        assert stream.ended == "done"
        return stream, text


def _prompt() -> str:
    return f"Tell {secrets.token_hex(8)} a story of a fleet."


def _healthy_workers(cluster: ComposeCluster) -> int:
    query = "count(tokenplane_agent_engine_healthy==1)"
    found = get_json(f"{cluster.url('PROMETHEUS_PORT')}/api/v1/query?query={query}")
    result = found["data"]["result"] if found else []
    return int(result[0]["value"][1]) if result else 0


def test_a_request_is_streamed(cluster: ComposeCluster) -> None:
    with _stream(cluster, _prompt()) as stream:
        pieces = list(stream.pieces())
        assert stream.ended == "done" and len(pieces) > 1
        assert stream.policy != "fallback"


def test_a_whole_trace_can_be_read_back(cluster: ComposeCluster) -> None:
    trace = secrets.token_hex(16)
    parent = f"00-{trace}-{secrets.token_hex(8)}-01"
    with _stream(cluster, _prompt(), traceparent=parent) as stream:
        list(stream.pieces())

    def whole() -> list[dict[str, object]] | None:
        found = get_json(f"{cluster.url('JAEGER_PORT')}/api/traces/{trace}")
        spans = found["data"][0]["spans"] if found else []
        return spans if {s["operationName"] for s in spans} >= WHOLE_TRACE else None

    spans = until(whole, f"the spans {WHOLE_TRACE} of one trace in Jaeger")
    assert {span["traceID"] for span in spans} == {trace}


def test_prometheus_understands_every_alert_and_dashboard(cluster: ComposeCluster) -> None:
    prometheus = cluster.url("PROMETHEUS_PORT")
    groups = get_json(f"{prometheus}/api/v1/rules")["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert rules and not [rule["name"] for rule in rules if rule["health"] == "err"]
    for expression in sorted(set(expressions())):
        found = get_json(f"{prometheus}/api/v1/query?{urlencode({'query': expression})}")
        assert found and found["status"] == "success", expression


def test_the_doctor_finds_nothing_that_does_not_work(cluster: ComposeCluster) -> None:
    operator = [
        f"{group}__{name}={value}"
        for group in ("TOKENPLANE_NATS", "TOKENPLANE_ETCD")
        for name, value in (("USER", "operator"), ("PASSWORD", "known-to-everybody"))
    ]
    us = [word for each in operator for word in ("-e", each)]
    said = cluster.compose("exec", "-T", *us, "gateway", "tokenplane", "doctor", "--json")
    found = {each["code"] for each in json.loads(said)["findings"]}
    assert found <= {"gateway-open"}, said


def test_an_answer_outlives_its_engine(cluster: ComposeCluster) -> None:
    prompt = _prompt()
    _, whole = _text(cluster, prompt)
    with _stream(cluster, prompt) as stream:
        pieces = stream.pieces()
        text = "".join(next(pieces) for _ in range(5))
        cluster.crash(stream.worker.removeprefix("engine-"))
        text += "".join(pieces)
        if stream.ended == "done":
            assert text == whole, "a token was lost or doubled"
        else:
            assert stream.ended in TYPED and whole.startswith(text)
    until(lambda: _all_healthy(cluster), "the engine's container again")


def test_the_next_request_is_routed_when_a_router_died(cluster: ComposeCluster) -> None:
    first, _ = cluster.containers("router")
    cluster.crash(first.id)
    for _ in range(10):
        stream, _ = _text(cluster, _prompt(), 2)
        assert stream.policy != "fallback"
    until(lambda: _all_healthy(cluster), "two routers again")


def test_requests_are_served_without_any_router(cluster: ComposeCluster) -> None:
    cluster.compose("kill", "router")
    stream, _ = _text(cluster, _prompt(), 2)
    assert stream.policy == "fallback"
    cluster.up()
    until(lambda: _text(cluster, _prompt(), 2)[0].policy != "fallback", "a router's choice")


@pytest.mark.parametrize("server", ["nats", "etcd"])
def test_requests_are_served_while_a_server_restarts(cluster: ComposeCluster, server: str) -> None:
    cluster.compose("kill", server)
    _text(cluster, _prompt(), 2)
    cluster.up()
    until(lambda: _text(cluster, _prompt(), 2)[0].policy != "fallback", "a router's choice")


def test_engines_come_and_go_under_load(cluster: ComposeCluster) -> None:
    with ThreadPoolExecutor(8) as users:
        load = [users.submit(_text, cluster, _prompt(), 30) for _ in range(60)]
        cluster.up(worker=6)
        load += [users.submit(_text, cluster, _prompt(), 30) for _ in range(60)]
        until(lambda: _healthy_workers(cluster) == 6, "six workers in Prometheus")
        cluster.up(worker=2)
        load += [users.submit(_text, cluster, _prompt(), 30) for _ in range(30)]
        texts = [each.result() for each in load]
    assert all(text for _, text in texts)
    assert len({stream.worker for stream, _ in texts}) > 4


def test_nobody_was_kept_from_what_it_needs(cluster: ComposeCluster) -> None:
    assert "Violation" not in cluster.compose("logs", "nats")


def test_nobody_is_killed_before_it_has_ended_its_work(cluster: ComposeCluster) -> None:
    """Docker gives each five seconds. What it takes beyond `stopped` is the interpreter's end,
    which on a crowded machine may be cut short."""
    cluster.compose("stop")
    ended = cluster.containers(all_of_them=True)
    ours = [each for each in ended if each.service in PROCESSES]
    assert len(ours) >= len(PROCESSES)
    for each in ours:
        log = cluster.log_of(each.id)
        told = log.rindex("SIGTERM: draining")
        assert '"message": "stopped"' in log[told:], f"{each.service} was killed while draining"


def _all_healthy(cluster: ComposeCluster) -> bool:
    up = cluster.containers()
    return all(each.health == "healthy" for each in up if each.service in ("worker", "router"))
