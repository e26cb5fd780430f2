"""The admin port: `/live` and `/ready` for probes, `/metrics` for Prometheus."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence

import anyio
from aiohttp import web
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import AdminSettings

log = logging.getLogger(__name__)

LAG_INTERVAL_S = 0.25
LAG_WINDOW = 40
CLOSE_S = 1.0

NotReady = Callable[[], Sequence[str]]
"""What is not ready, one phrase each; empty when the process may be sent work."""


class AdminPortTaken(CannotServe):
    """The admin port cannot be listened on; says which and what to do."""


class AdminServer:
    """A service: the admin port of a process.

    `/live` answers 200 while the event loop turns, `/ready` 200 or 503 with what is missing, a
    line each. Port 0 takes a free one; `port` tells which.
    """

    name = "admin"

    def __init__(
        self, settings: AdminSettings, metrics: CollectorRegistry, not_ready: NotReady
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._not_ready = not_ready
        self._lag = LoopLag(metrics)
        self.port = settings.port

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. Raises `AdminPortTaken`."""
        app = web.Application()
        app.router.add_get("/live", self._live)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._metrics_text)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S)
        try:
            await runner.setup()
            self.port = await self._listen(runner)
            log.info("admin port: http://%s:%d", self._settings.host, self.port)
            task_status.started()
            await self._lag.measure()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(2 * CLOSE_S):
                await runner.cleanup()

    async def drain(self) -> None:
        """Nothing: probes are answered to the end."""

    async def _listen(self, runner: web.AppRunner) -> int:
        host, port = self._settings.host, self._settings.port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise AdminPortTaken(
                f"cannot listen on the admin port {host}:{port} ({os.strerror(error.errno or 0)}); "
                "choose another with --admin.port, or 0 for a free one"
            ) from error
        return int(runner.addresses[0][1])

    async def _live(self, _: web.Request) -> web.Response:
        return web.Response(text="live\n")

    async def _ready(self, _: web.Request) -> web.Response:
        missing = self._not_ready()
        if missing:
            return web.Response(status=503, text="".join(f"{line}\n" for line in missing))
        return web.Response(text="ready\n")

    async def _metrics_text(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": content_type})


class LoopLag:
    """How late the event loop wakes a sleeper: the worst of the last few seconds."""

    def __init__(self, metrics: CollectorRegistry) -> None:
        self._late_s: deque[float] = deque([0.0], maxlen=LAG_WINDOW)
        Gauge(
            "tokenplane_event_loop_lag_seconds",
            f"Worst delay of a timer in the last {LAG_INTERVAL_S * LAG_WINDOW:g} s.",
            registry=metrics,
        ).set_function(lambda: max(self._late_s))

    async def measure(self) -> None:
        """Measure until cancelled."""
        while True:
            due_s = anyio.current_time() + LAG_INTERVAL_S
            await anyio.sleep_until(due_s)
            self._late_s.append(max(0.0, anyio.current_time() - due_s))
