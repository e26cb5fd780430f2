"""The router as a service: words in from the bus, decisions out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus
from opentelemetry.trace import Span, SpanKind

from controlplane.registry.membership import Change, Joined, Left, Updated
from controlplane.registry.view import RegistryView
from controlplane.router.core import RouterCore, booking_of
from controlplane.router.ingest import Lane
from controlplane.router.metrics import RouterMetrics
from controlplane.router.policy import policy
from controlplane.router.settings import RouterSettings
from controlplane.router.snapshots import Repair
from controlplane.runtime.tracing import extract, tracer
from proto.codec import Envelope, Producer, Reader, Unreadable
from proto.ids import ServiceId, new_incarnation
from proto.kv import KvBatch
from proto.load import LoadReport
from proto.progress import Booking, Progress
from proto.route import Chosen, RouteReply, RouteRequest
from proto.subjects import Subjects
from proto.wire.errors import BusError, RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo

log = logging.getLogger(__name__)
spans = tracer("tokenplane.router")

T = TypeVar("T")

VERSION = "1.0.0"
HOUSEKEEPING_S = 1.0
SWEEP_ENTRIES = 20_000
"""Entries one slice of a sweep may touch: a few milliseconds."""
FIRST_SNAPSHOTS_S = 20.0
"""How long a start waits for agents; later ones are healed while serving."""
DECISIONS_AT_ONCE = 16
"""A decision does not wait for anything but the bus taking its booking."""


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
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._bus = bus
        self._subjects = subjects
        self._view = view
        self._metrics = metrics
        self._clock = clock
        self._id = ServiceId(core.name)
        self.core = core
        self._producer = Producer(core.name, new_incarnation(clock()), clock)
        self._repair = Repair(settings, bus, subjects, self.core, metrics, self._producer)
        self._requests = Reader[RouteRequest](RouteRequest)
        self._leave = anyio.Event()
        self._left = anyio.Event()

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Listen, become true, answer; until cancelled, or drained and then cancelled."""
        async with AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            await self._listen(stack, tasks)
            stack.callback(self._view.subscribe(partial(self._on_change, tasks)))
            tasks.start_soon(self._housekeeping)
            with anyio.move_on_after(FIRST_SNAPSHOTS_S):
                await self._repair.all_tried()
            if untrue := self._repair.untrue():
                log.warning("serving while %d workers' blocks are not known yet", len(untrue))
            endpoint = Endpoint(
                "route", self._subjects.route, self._answer, concurrency=DECISIONS_AT_ONCE
            )
            service = ServiceInfo("tokenplane-router", VERSION, "chooses a worker for a prompt")
            async with self._bus.serve(service, [endpoint]):
                task_status.started()
                await self._leave.wait()
            self._left.set()
            await anyio.sleep_forever()

    async def drain(self) -> None:
        """Leave the group of replicas; requests that have come are answered."""
        self._leave.set()
        await self._left.wait()

    async def _listen(self, stack: AsyncExitStack, tasks: TaskGroup) -> None:
        """Subscribe to everything first, so that nothing is missed while snapshots come."""
        follow = partial(self._follow, stack, tasks)
        await follow(self._subjects.every_kv, KvBatch, partial(self._on_kv, tasks))
        await follow(self._subjects.every_load, LoadReport, partial(self._on_load, tasks))
        await follow(self._subjects.every_progress, Progress, self._on_progress)
        await follow(self._subjects.every_ledger, Booking, self._on_booking)

    async def _follow(
        self,
        stack: AsyncExitStack,
        tasks: TaskGroup,
        subject: str,
        kind: type[T],
        take: Callable[[Envelope[T]], None],
    ) -> None:
        reader = Reader[T](kind)
        messages = await stack.enter_async_context(self._bus.subscribe(subject))

        async def follow() -> None:
            async for message in messages:
                try:
                    envelope = reader.open(message.data)
                    take(envelope)
                except (Unreadable, ValueError) as error:
                    self._metrics.unreadable.labels(kind.__name__).inc()
                    log.debug("skipping a message on %s: %s", message.subject, error)

        tasks.start_soon(follow)

    def _on_change(self, tasks: TaskGroup, change: Change) -> None:
        match change:
            case Joined(record) | Updated(record, _):
                self.core.worker_joined(record)
                lane = self._repair.lanes.setdefault(record.worker, Lane())
                if record.incarnation > lane.incarnation:
                    lane.needs = lane.needs or "joined"
                    self._repair.want(record.worker, tasks)
            case Left(record):
                self.core.worker_left(record.worker)
                self._repair.forget(record.worker)

    def _on_kv(self, tasks: TaskGroup, envelope: Envelope[KvBatch]) -> None:
        lane = self._repair.lanes.get(envelope.body.worker)
        if lane is None:
            return  # not registered: it will be asked for a snapshot when it is
        for batch in lane.offer(envelope.incarnation, envelope.sequence, envelope.body):
            self.core.apply(batch)
        if lane.needs:
            self._repair.want(envelope.body.worker, tasks)
        self._metrics.batches.inc()
        self._metrics.lag_s.observe(max(0.0, self._clock() - envelope.time_s))

    def _on_load(self, tasks: TaskGroup, envelope: Envelope[LoadReport]) -> None:
        report = envelope.body
        self.core.observe_load(report, anyio.current_time())
        lane = self._repair.lanes.get(report.worker)
        if lane is None or lane.paused:
            return
        index = self.core.index
        count, digest = index.count(report.worker), index.digest(report.worker)
        if not lane.check(report, envelope.incarnation, count, digest):
            self._repair.want(report.worker, tasks)

    def _on_progress(self, envelope: Envelope[Progress]) -> None:
        self.core.progress(envelope.body, anyio.current_time())

    def _on_booking(self, envelope: Envelope[Booking]) -> None:
        if envelope.producer != self._id:
            self.core.booked_elsewhere(envelope.body, anyio.current_time())

    async def _answer(self, message: Message) -> bytes:
        try:
            request = self._requests.open(message.data).body
            policy(request.policy or "kv")
        except (Unreadable, ValueError) as error:
            self._metrics.unreadable.labels("RouteRequest").inc()
            raise RequestRefused(400, str(error)) from error
        with spans.start_as_current_span(
            "router.decide", context=extract(message.headers), kind=SpanKind.SERVER
        ) as span:
            began_s = time.perf_counter()
            reply = self.core.decide(request, anyio.current_time())
            self._metrics.decision_s.observe(time.perf_counter() - began_s)
            _describe(span, request, reply)
            self._count(request, reply)
            if isinstance(reply, Chosen):
                await self._gossip(booking_of(request, reply))
        return self._producer.seal(reply)

    async def _gossip(self, booking: Booking) -> None:
        try:
            await self._bus.publish(self._subjects.ledger(self._id), self._producer.seal(booking))
        except BusError as error:
            log.debug("the other routers were not told of a booking: %s", error)

    def _count(self, request: RouteRequest, reply: RouteReply) -> None:
        if isinstance(reply, Chosen):
            self._metrics.decisions.labels(reply.policy, "chosen").inc()
            cached_tokens = reply.overlap_blocks * reply.block_tokens
            self._metrics.predicted_hit.observe(cached_tokens / max(1, request.prompt_tokens))
        else:
            self._metrics.decisions.labels(request.policy, reply.reason).inc()

    async def _housekeeping(self) -> None:
        while True:
            await anyio.sleep(HOUSEKEEPING_S)
            self._metrics.expired.inc(self.core.expire(anyio.current_time()))
            self._metrics.blocks.set(len(self.core.index))
            self._metrics.in_flight.set(len(self.core.ledger))
            more = True
            while more:
                more = self.core.index.sweep(SWEEP_ENTRIES)
                await anyio.lowlevel.checkpoint()


def _describe(span: Span, request: RouteRequest, reply: RouteReply) -> None:
    if not span.is_recording():
        return
    span.set_attribute("tokenplane.request", request.request)
    span.set_attribute("gen_ai.request.model", request.model)
    span.set_attribute("tokenplane.prompt_tokens", request.prompt_tokens)
    if isinstance(reply, Chosen):
        span.set_attribute("tokenplane.worker", reply.worker)
        span.set_attribute("tokenplane.policy", reply.policy)
        span.set_attribute("tokenplane.overlap_blocks", reply.overlap_blocks)
    else:
        span.set_attribute("tokenplane.rejected", reply.reason)
