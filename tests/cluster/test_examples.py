"""The examples run against a live cluster, and so does every command that asks one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from proto.wire.nats.bus import NatsBus
from proto.wire.nats.settings import NatsSettings
from tests.support.up import UpCluster, up

EXAMPLES = Path(__file__).parents[2] / "examples" / "client"
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("examples"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[UpCluster]:
    with up(home, "--engines", "2", "--speed", "10") as running:
        yield running


def run(home: Path, name: str, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *words],
        env={**os.environ, "TOKENPLANE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def ask(cluster: UpCluster) -> str:
    """One request; returns its id."""
    body = json.dumps({"model": cluster.model, "prompt": "Hi", "max_tokens": 2}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{cluster.url}/v1/completions", body, headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        return str(response.headers["x-request-id"])


def test_workers(cluster: UpCluster, home: Path) -> None:
    assert run(home, "workers.py", "test").splitlines() == [
        f"engine-{n}: sim on sim, ready" for n in range(2)
    ]
    told = json.loads(cluster.tokenplane("workers", "--cluster", "test", "--json").stdout)
    assert [worker["worker"] for worker in told] == ["engine-0", "engine-1"]


def test_route(cluster: UpCluster, home: Path) -> None:
    assert run(home, "route.py", "sim", "test").startswith("engine-")
    assert run(home, "route.py", "other", "test").startswith("nowhere: unknown_model")


def test_explain(cluster: UpCluster, home: Path) -> None:
    lines = run(home, "explain.py", ask(cluster), "test").splitlines()
    assert lines[0].startswith("attempt 1: engine-")
    assert len(lines) == 3


def test_config(cluster: UpCluster, home: Path) -> None:
    lines = run(home, "config.py", "test").splitlines()
    assert lines[0].endswith("weighs prefill 4.0")
    assert lines[1].startswith("refused: router.prefill_weight cannot be -1")


def test_events(cluster: UpCluster, home: Path) -> None:
    assert len(run(home, "events.py", "test", "6").splitlines()) == 6


def test_a_drained_worker_gets_nothing_until_it_serves_again(cluster: UpCluster) -> None:
    words = ("drain", "engine-0", "--cluster", "test", "--json")
    said = cluster.tokenplane(*words, "--wait_s", "20").stdout
    assert json.loads(said) == {"draining": True, "left": 0, "evacuating": False}

    def served_by() -> set[str]:
        told = cluster.tokenplane("explain", ask(cluster), "--cluster", "test", "--json").stdout
        return {decision["worker"] for decision in json.loads(told)}

    cluster.wait_until(lambda: served_by() == {"engine-1"}, "routers to hear of it")
    assert {name for _ in range(3) for name in served_by()} == {"engine-1"}
    assert not json.loads(cluster.tokenplane(*words, "--undo").stdout)["draining"]


def test_every_service_is_in_nats_micro_ls(cluster: UpCluster) -> None:
    async def pinged() -> set[str]:
        settings = NatsSettings(servers=(str(cluster.state["nats"]),), name="micro")
        names = set()
        async with NatsBus(settings) as bus:
            for name in ("gateway", "router", "registry", "agent"):
                reply = await bus.request(f"$SRV.STATS.tokenplane-{name}", b"", timeout_s=10)
                told = json.loads(reply.data)
                assert told["endpoints"], name
                names.add(told["name"])
        return names

    assert anyio.run(pinged) == {
        f"tokenplane-{name}" for name in ("gateway", "router", "registry", "agent")
    }
