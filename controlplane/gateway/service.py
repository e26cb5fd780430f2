"""The gateway as a service: HTTP in front, the bus behind, engines beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskStatus

from controlplane.gateway.accounting import Accounting
from controlplane.gateway.admission import Admission
from controlplane.gateway.attempt import Attempts
from controlplane.gateway.directory import Directory
from controlplane.gateway.dispatch import Dispatcher
from controlplane.gateway.fetching import Fetching
from controlplane.gateway.handover import Handover, Told
from controlplane.gateway.health import Health
from controlplane.gateway.http import Border, Front
from controlplane.gateway.idempotency import Answers
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.pulse import Pulse
from controlplane.gateway.records import RecordWriter
from controlplane.gateway.routers import Routers
from controlplane.gateway.routing import Routing
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.telling import Teller
from controlplane.gateway.tickets import Tickets
from controlplane.registry.view import RegistryView
from controlplane.runtime.clock import steady_clock
from controlplane.runtime.looplag import watch_loop
from controlplane.runtime.outbox import Outbox
from proto.codec import Producer
from proto.ids import ServiceId, new_incarnation
from proto.subjects import Keys, Subjects
from proto.wire.ports import Bus, Http, HttpServing, Store

GATHER_S = 0.002
"""Progress that comes within it leaves together."""
SETTLED_S = 3.0
"""A gateway that leaves waits so long for its last records, and for its last reports of tickets."""
FAREWELL_S = 1.0
"""What it takes at most to tell of requests that end with the process, and to record them."""


@dataclass(frozen=True)
class Surroundings:
    """What a gateway is given of the world."""

    service: ServiceId
    secret: bytes
    bus: Bus
    http: Http
    subjects: Subjects
    view: RegistryView
    metrics: GatewayMetrics
    clock: Callable[[], float] = field(default_factory=steady_clock)
    server: HttpServing | None = None
    """None: nobody asks over HTTP, and `run` cannot be called."""
    store: Store | None = None
    keys: Keys | None = None
    """Where tenants are, if they are in the store."""


class GatewayService:
    """One gateway process; any number may run."""

    name = "gateway"

    def __init__(self, settings: GatewaySettings, around: Surroundings) -> None:
        bus, subjects, view, metrics = around.bus, around.subjects, around.view, around.metrics
        self._metrics, self._view = metrics, view
        producer = Producer(around.service, new_incarnation(around.clock()), around.clock)
        self._outbox = Outbox(bus, producer, gather_s=GATHER_S)
        teller = Teller(self._outbox, subjects)
        routers = Routers(settings, bus, subjects, metrics, producer, self._outbox.settled)
        routing = Routing(settings, around.secret, view, metrics, routers)
        self.routing = routing
        self.health = Health(settings, around.http, routing, view, metrics, teller)
        attempts = Attempts(settings, around.http, routing, self.health, teller)
        self._tickets = Tickets(bus, subjects, producer, settings.ticket_s)
        self._pulse = Pulse()
        fetching = Fetching(self._tickets, metrics, settings.fetch_s)
        told = Told(self._tickets, teller, metrics, fetching)
        handover = Handover(attempts, around.http, view, routing, told, around.service, self._pulse)
        self.records = RecordWriter(bus, subjects, producer, metrics, settings.records_waiting_max)
        self._admission = Admission(settings, around.secret, anyio.current_time)
        self._directory: Directory | None = None
        if settings.tenants_in_store:
            assert around.store is not None and around.keys is not None
            self._directory = Directory(around.store, around.keys, self._admission.use)
        accounting = Accounting(metrics, view, self.records.write, around.clock)
        self.dispatcher = Dispatcher(settings, view, routing, handover, self._admission, accounting)
        self._answers = Answers(settings.answers_kept_s, settings.answers_bytes_max)
        front = Front(self.dispatcher, self._admission, self._answers, view)
        self._border = Border(settings, front)
        self._server = around.server

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Serve until cancelled. Raises `PortTaken`."""
        assert self._server is not None, "given no HTTP server"
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.behind)
                tasks.start_soon(self._admission.follow)
                tasks.start_soon(self._answers.run)
                if self._directory is not None:
                    await tasks.start(self._follow_tenants)
                tasks.start_soon(self.health.run)
                tasks.start_soon(watch_loop, self._metrics.loop_lag_s.observe)
                async with self._border.listening(self._server):
                    task_status.started()
                    await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(FAREWELL_S, shield=True):
                await self._outbox.settled()
                await self.records.store_waiting()

    async def behind(self) -> None:
        """What is heard and written behind the requests' backs, until cancelled."""
        unsubscribe = self._view.subscribe(self.dispatcher.hear)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.dispatcher.run)
                tasks.start_soon(self.records.run)
                tasks.start_soon(self._tickets.run)
                tasks.start_soon(self._pulse.run)
                tasks.start_soon(self._outbox.run)
        finally:
            unsubscribe()

    async def _follow_tenants(self, *, task_status: TaskStatus[None]) -> None:
        assert self._directory is not None
        await self._directory.run(task_status=task_status)

    async def drain(self) -> None:
        """Refuse new requests, finish what is under way, store what is to be remembered."""
        await self._border.drain()
        await self._outbox.settled()
        with anyio.move_on_after(SETTLED_S):
            await self.records.settled()
        with anyio.move_on_after(SETTLED_S):
            await self._tickets.settled()
