"""The router as a service: words in from the bus, decisions out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import anyio
from anyio.abc import TaskStatus
from anyio.lowlevel import checkpoint
from opentelemetry.trace import Span, SpanKind

from controlplane.registry.view import RegistryView
from controlplane.router.core import RouterCore
from controlplane.router.explain import attributes_of
from controlplane.router.listener import Listener
from controlplane.router.metrics import RouterMetrics
from controlplane.router.replicas import Replicas
from controlplane.router.replication import Replication
from controlplane.router.requests import booking_of, check
from controlplane.router.room import WaitingRoom
from controlplane.router.settings import RouterSettings
from controlplane.router.snapshots import Repair
from controlplane.router.teller import Teller
from controlplane.runtime.clock import steady_clock
from controlplane.runtime.tracing import extract, tracer
from proto.codec import Producer, Reader, Unreadable
from proto.ids import new_incarnation
from proto.route import Chosen, Queued, RouteReply, RouteRequest, Verdict
from proto.subjects import Subjects
from proto.wire.errors import RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo

log = logging.getLogger(__name__)
spans = tracer("tokenplane.router")

VERSION = "1.0.0"
HOUSEKEEPING_S = 1.0
SWEEP_ENTRIES = 4_096
"""Entries one slice of a sweep may touch: a few milliseconds."""
FIRST_SNAPSHOTS_S = 20.0
"""How long a start waits for agents; later ones are healed while serving."""
LEAVING_AT_ONCE = 16
"""Beside those that wait for a worker, so that who finds no room to wait is told so."""


class RouterService:
    """One replica; any number may run, and they share the requests."""

    name = "router"

    def __init__(
        self,
        settings: RouterSettings,
        core: RouterCore,
        bus: Bus,
        subjects: Subjects,
        view: RegistryView,
        metrics: RouterMetrics,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        clock = clock or steady_clock()
        self.core = core
        self._bus = bus
        self._subjects = subjects
        self._view = view
        self._metrics = metrics
        self._producer = Producer(core.name, new_incarnation(clock()), clock)
        self._repair = Repair(settings, bus, subjects, core, metrics, self._producer)
        self._room = WaitingRoom(core, settings.waiting_max)
        self._listener = Listener(bus, subjects, core, self._repair, metrics, clock, self._room)
        self._replicas = Replicas(bus, subjects, core, self._producer)
        self._replication = Replication(bus, subjects, self._producer, metrics)
        self._teller = Teller(settings, bus, subjects, core, self._producer, clock)
        self._waiting_at_once = LEAVING_AT_ONCE + settings.waiting_max
        self._requests = Reader[RouteRequest](RouteRequest)
        self._leave = anyio.Event()
        self._left = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Listen, become true, answer; until cancelled, or drained and then cancelled."""
        async with anyio.create_task_group() as tasks, self._listener.listening(tasks):
            unsubscribe = self._view.subscribe(partial(self._listener.on_change, tasks))
            try:
                tasks.start_soon(self._housekeeping)
                tasks.start_soon(self._teller.run)
                tasks.start_soon(self._replication.run)
                tasks.start_soon(self._replicas.tell)
                tasks.start_soon(self._room.usher)
                with anyio.move_on_after(FIRST_SNAPSHOTS_S):
                    await self._repair.all_tried()
                if untrue := self._repair.untrue():
                    log.warning("serving while %d workers' blocks are not known yet", len(untrue))
                await self._replicas.learn()
                await self._serve(task_status)
                await anyio.sleep_forever()
            finally:
                unsubscribe()

    def adopt(self, settings: RouterSettings) -> None:
        """Go on with other settings; those that are no live ones stay."""
        self.core.adopt(settings)
        self._teller.share = settings.decisions_share
        self._room.stir()

    @property
    def waiting(self) -> int:
        """Requests that wait for a worker."""
        return len(self._room)

    async def drain(self) -> None:
        """Leave the group of replicas; requests that have come are answered, those that wait for
        a worker with the advice to wait elsewhere."""
        self._leave.set()
        await self._left.wait()

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        """Answer until told to leave, and finish what is under way."""
        endpoint = Endpoint(
            "route",
            self._subjects.route,
            self._answer,
            self._answer_at_once,
            concurrency=self._waiting_at_once,
        )
        service = ServiceInfo("tokenplane-router", VERSION, "chooses a worker for a prompt")
        async with self._bus.serve(service, [endpoint, self._replicas.endpoint]):
            task_status.started()
            await self._leave.wait()
            self._room.close()
        self._left.set()

    def _answer_at_once(self, message: Message) -> bytes | None:
        """The answer, unless the request has to wait for a worker."""
        request = self._open(message)
        self._listener.hear_progress()
        now_s = anyio.current_time()
        if not request.waited_s:
            self.core.failed(request.exclude, now_s)
        with self._span(message) as span:
            decide = partial(self._decide, request, span)
            verdict = self._room.at_once(request, now_s, decide)
            return None if verdict is None else self._told(request, verdict, request.waited_s, span)

    async def _answer(self, message: Message) -> bytes:
        """The answer to a request that has to wait."""
        request = self._open(message)
        began_s = anyio.current_time()
        with self._span(message) as span:
            decide = partial(self._decide, request, span)
            reply = await self._room.answer(request, began_s, decide)
            waited_s = request.waited_s + anyio.current_time() - began_s
            return self._told(request, reply, waited_s, span)

    def _open(self, message: Message) -> RouteRequest:
        try:
            request = self._requests.open(message.data).body
            check(request, self.core.catalog)
        except (Unreadable, ValueError) as error:
            self._metrics.unreadable.labels("RouteRequest").inc()
            raise RequestRefused(400, str(error)) from error
        return request

    def _span(self, message: Message) -> AbstractContextManager[Span]:
        context = extract(message.headers)
        return spans.start_as_current_span("router.decide", context=context, kind=SpanKind.SERVER)

    def _told(self, request: RouteRequest, reply: RouteReply, waited_s: float, span: Span) -> bytes:
        """The answer in words; others are told of what it books."""
        span.set_attribute("tokenplane.waited_ms", waited_s * 1000)
        self._count(request, reply, waited_s)
        if isinstance(reply, Chosen):
            self._replicas.note(booking_of(request, reply))
        for hot in self.core.take_hot():
            self._replication.note(hot)
        return self._producer.seal(reply)

    def _decide(self, request: RouteRequest, span: Span, now_s: float) -> Verdict:
        began_s = time.perf_counter()
        verdict = self.core.decide(request, now_s)
        self._metrics.decision_s.observe(time.perf_counter() - began_s)
        made = self.core.decisions.last
        assert made is not None, "a decision is remembered"
        self._teller.note(made)
        if span.is_recording():
            span.set_attributes(attributes_of(request, verdict, made))
        return verdict

    def _count(self, request: RouteRequest, reply: RouteReply, waited_s: float) -> None:
        if isinstance(reply, Queued):
            self._metrics.decisions.labels(request.policy, "queued").inc()
            return
        self._metrics.waited_s.observe(waited_s)
        if isinstance(reply, Chosen):
            self._metrics.decisions.labels(reply.policy, "chosen").inc()
            cached_tokens = reply.overlap_blocks * reply.block_tokens
            self._metrics.predicted_hit.observe(cached_tokens / request.prompt_tokens)
        else:
            self._metrics.decisions.labels(request.policy, reply.reason).inc()

    async def _housekeeping(self) -> None:
        while True:
            await anyio.sleep(HOUSEKEEPING_S)
            self._metrics.expired.inc(self.core.expire(anyio.current_time()))
            self._metrics.blocks.set(len(self.core.known))
            self._metrics.waiting.set(self.waiting)
            self._room.stir()
            self._metrics.in_flight.set(len(self.core.ledger))
            self._metrics.untrue.set(len(self._repair.untrue()))
            self._tell_faults()
            for kind, messages in self._listener.dropped().items():
                self._metrics.dropped.labels(kind).set(messages)
            while self.core.known.sweep(SWEEP_ENTRIES):
                await checkpoint()

    def _tell_faults(self) -> None:
        faults = self.core.catalog.faults
        for name, why in faults.take_untold().items():
            log.error("plug-in %s has failed: %s; later failures are only counted", name, why)
        for name, count in faults.counts.items():
            self._metrics.plugin_faults.labels(name).set(count)
