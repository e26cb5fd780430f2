"""The console as a service: words in from the bus, pictures out to browsers."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio
import msgspec
from anyio.abc import TaskStatus
from prometheus_client import CollectorRegistry, Gauge

from controlplane.console.audience import Audience
from controlplane.console.board import Board, ready_workers
from controlplane.console.frames import Hello
from controlplane.console.http import Site
from controlplane.console.listener import Listener
from controlplane.console.settings import ConsoleSettings
from controlplane.console.spans import SpanStore
from controlplane.registry.membership import Change
from controlplane.registry.view import RegistryView
from controlplane.runtime.asking import ask_routers
from controlplane.runtime.version import VERSION
from proto.decisions import Decision
from proto.ids import RequestId
from proto.subjects import Subjects
from proto.wire.ports import Bus

EXPLAIN_S = 0.5
"""How long routers are given to remember a request."""


class ConsoleService:
    """One page; read-only. Any number may run."""

    name = "console"

    def __init__(
        self,
        settings: ConsoleSettings,
        cluster: str,
        bus: Bus,
        view: RegistryView,
        metrics: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        points_max = int(settings.history_s / settings.every_s)
        self.board = Board(window_s=settings.window_s, points_max=points_max)
        self._settings = settings
        self._cluster = cluster
        self._bus = bus
        self._subjects = Subjects(cluster)
        self._view = view
        self._clock = clock
        self._listener = Listener(bus, self._subjects, self.board, metrics)
        self._audience = Audience(settings.pages_max)
        self._fleet = self.board.fleet({}, stale=True)
        self._changed = True
        spans = SpanStore(settings.spans_max) if settings.spans_max else None
        self._site = Site(settings, self._audience, self._opening, self._explain, spans)
        Gauge("tokenplane_console_pages", "Pages that are open", registry=metrics).set_function(
            lambda: len(self._audience)
        )

    @property
    def port(self) -> int:
        """Where it listens, once it runs."""
        return self._site.port

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. Raises `PortTaken`."""
        unsubscribe = self._view.subscribe(self._on_change)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listener.run)
                async with self._site:
                    task_status.started()
                    await self._beat()
        finally:
            unsubscribe()

    async def drain(self) -> None:
        """Pages are told that it is over by the end of their feed, and look for another one."""
        self._audience.dismiss()

    async def _beat(self) -> None:
        while True:
            self._show()
            await anyio.sleep(self._settings.every_s)

    def _show(self) -> None:
        stale = self._view.stale_since is not None
        if self._changed or stale != self._fleet.stale:
            self._changed = False
            self._fleet = self.board.fleet(self._view.workers, stale=stale)
            self._audience.tell(event("fleet", self._fleet), vital=True)
        frame = self.board.frame(
            anyio.current_time(),
            round(self._clock(), 3),
            ready=ready_workers(self._view.workers),
            connected=self._bus.connected,
        )
        self._audience.tell(event("frame", frame), vital=False)

    def _opening(self) -> list[bytes]:
        settings, board = self._settings, self.board
        hello = Hello(
            cluster=self._cluster,
            version=VERSION,
            every_s=settings.every_s,
            window_s=settings.window_s,
            ttft_ms=settings.ttft_ms,
            tpot_ms=settings.tpot_ms,
            curves=board.history.curves(),
            ended=tuple(board.ended),
            decisions=tuple(board.decisions),
            transfers=board.movements.all(),
            plans=tuple(board.plans),
            traces=settings.spans_max > 0,
        )
        return [event("hello", hello), event("fleet", self._fleet)]

    async def _explain(self, request: RequestId) -> list[Decision]:
        return await ask_routers(self._bus, self._subjects, request, EXPLAIN_S)

    def _on_change(self, _: Change) -> None:
        self._changed = True


def event(kind: str, body: msgspec.Struct) -> bytes:
    """One server-sent event."""
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), msgspec.json.encode(body))
