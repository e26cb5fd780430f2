"""The admin port: probes, metrics, and a port that is taken."""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from prometheus_client import CollectorRegistry, Counter

from controlplane.runtime.admin import LAG_INTERVAL_S, AdminPortTaken, AdminServer, LoopLag
from controlplane.runtime.readiness import Readiness
from controlplane.runtime.service import Phase
from controlplane.runtime.settings import AdminSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def metrics() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
async def admin(metrics: CollectorRegistry, readiness: Readiness) -> AsyncIterator[AdminServer]:
    """A server on a free port."""
    server = AdminServer(AdminSettings(), metrics, readiness.not_ready)
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: server.run(task_status=task_status))
        yield server
        tasks.cancel_scope.cancel()


async def get(admin: AdminServer, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type and body of an answer."""

    def fetch() -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{admin.port}{path}"
        request = urllib.request.Request(url, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    return await anyio.to_thread.run_sync(fetch)


async def test_live_while_the_loop_turns(admin: AdminServer) -> None:
    assert (await get(admin, "/live"))[0] == 200
    assert (await get(admin, "/elsewhere"))[0] == 404


async def test_ready_says_what_is_missing(admin: AdminServer, readiness: Readiness) -> None:
    synced = False
    readiness.observe("router", Phase.STARTING)
    readiness.require("no snapshot yet", lambda: synced)
    status, _, text = await get(admin, "/ready")
    assert (status, text) == (503, "router is starting\nno snapshot yet\n")
    readiness.observe("router", Phase.READY)
    assert (await get(admin, "/ready"))[2] == "no snapshot yet\n"
    synced = True
    assert (await get(admin, "/ready"))[0] == 200
    readiness.observe("router", Phase.DRAINING)
    assert (await get(admin, "/ready"))[::2] == (503, "router is draining\n")
    assert (await get(admin, "/live"))[0] == 200


async def test_metrics_in_the_format_that_is_asked_for(
    admin: AdminServer, metrics: CollectorRegistry
) -> None:
    Counter("tokenplane_tests", "Tests.", registry=metrics).inc(3)
    _, plain, text = await get(admin, "/metrics")
    assert plain.startswith("text/plain")
    assert "tokenplane_tests_total 3.0" in text
    assert "tokenplane_event_loop_lag_seconds" in text
    _, modern, text = await get(admin, "/metrics", "application/openmetrics-text; version=1.0.0")
    assert modern.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


async def test_a_port_that_is_taken_is_named(metrics: CollectorRegistry) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = AdminServer(AdminSettings(port=port), metrics, list)
        async with anyio.create_task_group() as tasks:
            with pytest.raises(AdminPortTaken, match=rf"127.0.0.1:{port} .*--admin.port"):
                await tasks.start(lambda *, task_status: server.run(task_status=task_status))


async def test_the_port_is_free_again_afterwards(metrics: CollectorRegistry) -> None:
    server = AdminServer(AdminSettings(), metrics, list)
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: server.run(task_status=task_status))
        await get(server, "/live")
        tasks.cancel_scope.cancel()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


async def test_a_blocked_loop_shows_as_lag(metrics: CollectorRegistry) -> None:
    lag = LoopLag(metrics)
    blocked_s = 0.2
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lag.measure)
        await anyio.wait_all_tasks_blocked()
        time.sleep(LAG_INTERVAL_S + blocked_s)  # noqa: ASYNC251 - what is being tested
        with anyio.fail_after(5):
            while worst_lag_s(metrics) < blocked_s / 2:
                await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()


def worst_lag_s(metrics: CollectorRegistry) -> float:
    return metrics.get_sample_value("tokenplane_event_loop_lag_seconds") or 0.0
