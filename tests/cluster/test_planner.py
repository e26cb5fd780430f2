"""A ramp of load through a real cluster with a planner: engines come, go, and nobody fails."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio
import pytest

from proto.scaling import Action, Reason
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


class LiveView:
    """What a page sees that looks at the console all the while."""

    def __init__(self, cluster: UpCluster) -> None:
        self._url = f"{cluster.state['console']}/api/events"
        self.ready: list[int] = []
        """Workers, each number once for as long as it lasts."""
        self.decided: list[tuple[str, str]] = []
        """What the planner has done, and why."""

    async def look(self) -> None:
        """Until cancelled."""
        async with HttpClient() as http, http.exchange("GET", self._url) as answer:
            unread = b""
            async for piece in answer.chunks():
                *events, unread = (unread + piece).split(b"\n\n")
                for event in events:
                    name, _, data = event.partition(b"\ndata: ")
                    if name == b"event: frame":
                        self._see(json.loads(data))

    def _see(self, frame: Mapping[str, Any]) -> None:
        ready = int(frame["point"]["ready"] or 0)
        if self.ready[-1:] != [ready]:
            self.ready.append(ready)
        for tick in frame["plans"]:
            self.decided += [
                (phase["action"], phase["reason"])
                for phase in tick["phases"]
                if phase["action"] != Action.HOLD
            ]


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

    async def ramp() -> tuple[Load, LiveView]:
        load, view = Load(cluster), LiveView(cluster)
        async with anyio.create_task_group() as looking:
            looking.start_soon(view.look)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                load.per_s = BUSY_PER_S
                await until(lambda count: count > 1, BUSY_S_MAX)
                load.per_s = QUIET_PER_S
                await until(lambda count: count == 1, QUIET_S_MAX)
                load.per_s = 0.0
            await wait_until(lambda: view.ready[-1:] == [1], within_s=10.0)
            looking.cancel_scope.cancel()
        return load, view

    load, view = anyio.run(ramp)
    assert load.failed == []
    assert load.completed > 50
    assert max(view.ready) > 1
    assert view.ready[-1] == 1
    assert {action for action, _ in view.decided} >= {Action.UP, Action.DOWN}
    assert {Reason.TTFT_AT_RISK, Reason.TPOT_AT_RISK, Reason.KV_FULL, Reason.FORECAST_FLOOR} & {
        reason for action, reason in view.decided if action == Action.UP
    }
    assert cluster.state["children"]["planner"]["restarts"] == 0
