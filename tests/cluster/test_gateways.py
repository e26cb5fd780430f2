"""Two gateway processes behind one port: shared, drained one after the other, and not to be filled
up by clients that do not read."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2 as httpx
import psutil
import pytest

from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("gateways"),
]

GATEWAYS = ("gateway", "gateway-2")
STALLED = 100
STREAMED = 16_000
"""Tokens of a stream that outlasts all that is done meanwhile; some seconds."""
STALL_S = 2
FLAT_BYTES = 32 << 20
"""What 100 connections, their tasks and a bounded buffer for each may take; one answer of each
would be more than ten times that."""
ENDLESS = {"prompt": "Go on.", "max_tokens": 30_000, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENPLANE_GATEWAY__STALL_S", str(STALL_S))
        patch.setenv("TOKENPLANE_DRAIN_S", "60")
        options = ("--engines", "2", "--gateways", str(len(GATEWAYS)), "--speed", "20")
        with up(tmp_path_factory.mktemp("up"), *options) as running:
            yield running


def served(cluster: UpCluster) -> str:
    """A request on a connection of its own; the id of what answered it."""
    body = {"model": cluster.model, "prompt": "Hello", "max_tokens": 2}
    answer = httpx.post(f"{cluster.url}/v1/completions", json=body, timeout=20)
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


def in_flight(cluster: UpCluster) -> dict[str, float]:
    """Requests under way, by gateway process."""
    name = "tokenplane_gateway_requests_in_flight"
    admins = zip(GATEWAYS, cluster.state["gateway_admins"], strict=True)
    return {gateway: cluster.gauge(admin, name) for gateway, admin in admins}


def running(cluster: UpCluster) -> float:
    name = "vllm:num_requests_running"
    return sum(cluster.gauge(engine, name) for engine in cluster.state["engines"])


def test_both_serve_the_one_port(cluster: UpCluster) -> None:
    admins = cluster.state["gateway_admins"]

    def both_have_served() -> bool:
        served(cluster)
        return all(cluster.gauge(a, "tokenplane_gateway_requests_total") for a in admins)

    cluster.wait_until(both_have_served, "both processes to have served a request")


def test_gw15_a_process_that_is_told_to_stop_finishes_its_streams(cluster: UpCluster) -> None:
    body = {**ENDLESS, "model": cluster.model, "max_tokens": STREAMED}
    with (
        httpx.stream("POST", f"{cluster.url}/v1/completions", json=body, timeout=30) as stream,
        ThreadPoolExecutor(1) as pool,
    ):
        lines = stream.iter_lines()
        next(lines)
        rest = pool.submit(list, lines)
        [(name, admin)] = [
            (name, admin)
            for name, admin in zip(GATEWAYS, cluster.state["gateway_admins"], strict=True)
            if in_flight(cluster)[name]
        ]
        restarts = cluster.restarts(name)
        os.kill(cluster.pids()[name], signal.SIGTERM)
        cluster.wait_until(
            lambda: httpx.get(f"{admin}/ready").status_code == 503, "it to say that it goes"
        )
        assert httpx.get(f"{admin}/live").status_code == 200
        for _ in range(8):  # whoever comes now finds the other one
            served(cluster)
        text = rest.result()
    assert [line for line in text if line][-1] == "data: [DONE]"
    cluster.wait_until(lambda: cluster.restarts(name) > restarts, "it to be started again")
    cluster.wait_ready()


def test_gw2_readers_that_stall_cost_little_memory_and_no_engine_for_long(
    cluster: UpCluster,
) -> None:
    # Long events, which soon fill what lies between an engine and who does not read.
    body = json.dumps({**ENDLESS, "model": cluster.model, "logprobs": 20}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    host, _, port = cluster.url.removeprefix("http://").partition(":")
    processes = [psutil.Process(cluster.pids()[name]) for name in GATEWAYS]
    before = sum(process.memory_info().rss for process in processes)
    most = 0.0
    with ExitStack() as stack:
        for _ in range(STALLED):
            client = socket.socket()
            # A small window: the client's system takes little off the gateway's hands.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            stack.enter_context(client)
            client.sendall(head.encode() + body)
        cluster.wait_until(lambda: sum(in_flight(cluster).values()) == STALLED, "all to be served")

        def none_is_left() -> bool:
            nonlocal most
            most = max(most, sum(process.memory_info().rss for process in processes))
            return sum(in_flight(cluster).values()) == 0

        cluster.wait_until(none_is_left, "their requests to be ended")
        cluster.wait_until(lambda: running(cluster) == 0, "the engines to be free")
    assert most - before < FLAT_BYTES
    served(cluster)
