"""SGLang's order in a live cluster: both legs are asked at once, and meet by themselves.

The engines are stand-ins that hold to SGLang's contract; gateway, router, coordinator, bus, store
and the agents beside the engines are the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from controlplane.local.ports import free_ports
from proto.workers import HandoffOrder, KvTransfer
from tests.support.engines.handover import SglangMeeting
from tests.support.engines.sglang import sglang
from tests.support.engines.standin import MODEL
from tests.support.up import UpCluster, up

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("split_sglang"),
]

REMOTE = 'tokenplane_gateway_handovers_total{outcome="remote",reason=""}'
BOOTSTRAP = ("10.1.2.3", 8998)
READY_S = 60.0


@asynccontextmanager
async def agent(cluster: UpCluster, role: str, url: str) -> AsyncIterator[None]:
    """Beside a stand-in, as its operator would start it."""
    transfer = KvTransfer(
        connector="nixl", order=HandoffOrder.OVERLAPPED, bootstrap=f"{BOOTSTRAP[0]}:{BOOTSTRAP[1]}"
    )
    (admin,) = free_ports(1)
    settings = {
        "TOKENPLANE_ADMIN__PORT": str(admin),
        "TOKENPLANE_AGENT__WORKER": f"sglang-{role}",
        "TOKENPLANE_AGENT__ENGINE": "sglang",
        "TOKENPLANE_AGENT__ENGINE_URL": url,
        "TOKENPLANE_AGENT__ROLE": role,
        "TOKENPLANE_AGENT__KV_TRANSFER": transfer.model_dump_json(),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "agents"],
        env={**os.environ, **cluster.environment(), **settings},
    )
    try:
        yield
    finally:
        process.terminate()
        await anyio.to_thread.run_sync(process.wait)


def ask(cluster: UpCluster, prompt: list[int]) -> Any:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 6}
    request = urllib.request.Request(
        cluster.url + "/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def ready(cluster: UpCluster) -> bool:
    workers = json.loads(cluster.tokenplane("workers", "--cluster", "test", "--json").stdout)
    return [w["state"] for w in workers if w["engine"] == "sglang"] == ["ready", "ready"]


async def _serve(cluster: UpCluster, directory: Path) -> None:
    meeting = SglangMeeting(*BOOTSTRAP)

    async def until(condition: Any, *given: Any) -> None:
        with anyio.fail_after(READY_S):
            while not await anyio.to_thread.run_sync(condition, *given):  # noqa: ASYNC110 it tells by no event
                await anyio.sleep(0.2)

    async with (
        sglang(directory / "p", handed=lambda *call: meeting.complete("prefill", *call)) as one,
        sglang(directory / "d", handed=lambda *call: meeting.complete("decode", *call)) as other,
        agent(cluster, "prefill", one),
        agent(cluster, "decode", other),
    ):
        await until(ready, cluster)
        admin = cluster.state["gateway_admin"]
        before = await anyio.to_thread.run_sync(cluster.gauge, admin, REMOTE)
        for number in range(3):
            prompt = [10 + (n * number) % 50 for n in range(48)]
            answer = await anyio.to_thread.run_sync(ask, cluster, prompt)
            assert len(answer["choices"][0]["text"]) > 0
        assert len(set(meeting.rooms)) == 3  # a room for each
        # The client has its answer, and goes, before it is counted.
        await until(lambda: cluster.gauge(admin, REMOTE) == before + 3)


def test_en8_sglangs_engines_meet_by_themselves_in_a_live_cluster(tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    words = ("--roles", "1P1D", "--prefill", "remote")
    with up(tmp_path / "up", *words) as cluster:
        anyio.run(_serve, cluster, tmp_path, backend="asyncio")
