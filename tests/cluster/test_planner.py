"""A ramp of load through a real cluster with a planner: engines come, go, and nobody fails."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

import anyio
import pytest

from proto.wire.http import HttpClient
from tests.support.up import UpCluster, up
from tests.unit.agents.reader import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.chaos,  # minutes of load: `make test` leaves it out
    pytest.mark.timeout(300),
    pytest.mark.xdist_group("planner"),
]

TOKENS = 80
QUIET_PER_S, BUSY_PER_S = 0.5, 8.0
BUSY_S_MAX, QUIET_S_MAX = 90.0, 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpCluster]:
    options = ("--planner", "--engines", "1", "--engines-max", "3")
    with up(
        tmp_path_factory.mktemp("up"),
        *options,
        ready_s=120.0,
        TOKENPLANE_PLANNER__TICK_S="1",
        TOKENPLANE_PLANNER__DOWN_AFTER_S="10",
        TOKENPLANE_PLANNER__RATE_WINDOW_S="10",
        TOKENPLANE_PLANNER__RESERVE_HALF_S="10",
        # Above what a machine that is short of CPU adds: latencies that are missed are load, too.
        TOKENPLANE_PLANNER__TTFT_MS="2000",
        TOKENPLANE_PLANNER__TPOT_MS="200",
    ) as running:
        yield running


class Load:
    """Requests at a rate that can be changed; every answer is looked at."""

    def __init__(self, cluster: UpCluster) -> None:
        self._cluster = cluster
        self._rng = random.Random(0)
        self.per_s = QUIET_PER_S
        self.completed = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        async with HttpClient() as http, anyio.create_task_group() as tasks:
            while self.per_s:
                tasks.start_soon(self._one, http)
                await anyio.sleep(self._rng.expovariate(self.per_s))

    async def _one(self, http: HttpClient) -> None:
        prompt = [self._rng.randint(1_000, 30_000) for _ in range(1_200)]
        body = {
            "model": self._cluster.model,
            "prompt": prompt,
            "max_tokens": TOKENS,
            "stream": True,
            "ignore_eos": True,
        }
        url = f"{self._cluster.url}/v1/completions"
        async with http.exchange("POST", url, body=json.dumps(body).encode()) as answer:
            text = await answer.read()
        if answer.status == 200 and text.rstrip().endswith(b"data: [DONE]"):
            self.completed += 1
        else:
            self.failed.append(f"{answer.status}: {text[-200:]!r}")


def test_engines_follow_a_ramp_up_and_down_and_no_request_fails(cluster: UpCluster) -> None:
    def engines() -> int:
        children = cluster.state["children"]
        return sum(child["ready"] for name, child in children.items() if name.startswith("agent-"))

    async def until(there: Callable[[int], bool], within_s: float) -> None:
        await wait_until(lambda: there(engines()), within_s=within_s)
        assert there(engines()), (engines(), cluster.output())

    async def ramp() -> Load:
        load = Load(cluster)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load.run)
            load.per_s = BUSY_PER_S
            await until(lambda count: count > 1, BUSY_S_MAX)
            load.per_s = QUIET_PER_S
            await until(lambda count: count == 1, QUIET_S_MAX)
            load.per_s = 0.0
        return load

    load = anyio.run(ramp)
    assert load.failed == []
    assert load.completed > 50
    assert cluster.state["children"]["planner"]["restarts"] == 0
