"""The coordinator as a service: asked by gateways, commanding agents, any number of replicas.

What it says has happened is in the bucket before it says so. A replica that starts finds all
tickets there; one that dies leaves them to the others, which see to deadlines and to what is owed.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from opentelemetry.trace import SpanKind

from controlplane.registry.membership import Change, Joined, Left, Updated
from controlplane.registry.view import RegistryView
from controlplane.runtime.clock import steady_clock
from controlplane.runtime.outbox import Outbox
from controlplane.runtime.tracing import extract, inject, tracer
from controlplane.transfer.commander import Commander
from controlplane.transfer.coordinator import DECODE_FULL, Coordinator, Walk
from controlplane.transfer.duties import Duties
from controlplane.transfer.metrics import TransferMetrics
from controlplane.transfer.moves import Hands, Moves
from controlplane.transfer.settings import TransferSettings
from controlplane.transfer.shelf import Shelf, Taken
from controlplane.transfer.teller import Teller
from controlplane.transfer.ticket import Refused
from proto.codec import Producer, Reader, Unreadable
from proto.ids import BadName, ServiceId, check_name, new_incarnation
from proto.load import LoadReport
from proto.subjects import Subjects
from proto.transfers import (
    Begin,
    BeginReply,
    Denied,
    Evacuate,
    Granted,
    Local,
    Move,
    Report,
    ReportReply,
    State,
    Step,
    Stepped,
    Ticket,
    TicketId,
    Tickets,
    new_ticket_id,
)
from proto.wire.errors import BusError, BusTimeout, BusUnavailable, RequestRefused
from proto.wire.ports import Bus, Endpoint, Message, ServiceInfo, Subscription

log = logging.getLogger(__name__)
spans = tracer("tokenplane.transfer")
T = TypeVar("T")

VERSION = "1.0.0"
ADMIT_S = 1.0
"""A report waits so long for its transfer to be let in; then the owner reports again."""
ERRANDS = 1024
ERRANDS_AT_ONCE = 32
PAUSE_S = 0.5

Errand = tuple[Ticket, bool]
"""A ticket with duties, and whether another replica may be about to do them."""


class TransferService:
    """One replica."""

    name = "transfer"

    def __init__(
        self,
        settings: TransferSettings,
        bus: Bus,
        subjects: Subjects,
        view: RegistryView,
        metrics: TransferMetrics,
        *,
        service: ServiceId,
        clock: Callable[[], float] | None = None,
    ) -> None:
        clock = clock or steady_clock()
        self._settings = settings
        self._bus = bus
        self._subjects = subjects
        self._view = view
        self._metrics = metrics
        self._clock = clock
        self._rng = random.SystemRandom()
        self.core = Coordinator(settings)
        producer = Producer(service, new_incarnation(clock()), clock)
        self._producer = producer
        self._shelf = Shelf(bus, subjects, self.core.book, metrics)
        commander = Commander(bus, subjects, producer)
        self._duties = Duties(self._shelf, commander, metrics, settings.duty_s, clock)
        hands = Hands(self._hear, self._has_happened, self._new_id, clock)
        self._moves = Moves(settings, service, self.core, self._shelf, commander, hands, metrics)
        self._outbox = Outbox(bus, producer, gather_s=0)
        self._teller = Teller(self._outbox, subjects, metrics)
        self._errands: MemoryObjectSendStream[Errand] | None = None
        self._begins = Reader[Begin](Begin)
        self._reports = Reader[Report](Report)
        self._asked_moves = Reader[Move](Move)
        self._evacuations = Reader[Evacuate](Evacuate)
        self._loads = Reader[LoadReport](LoadReport)
        self._waiting: dict[TicketId, anyio.CancelScope] = {}
        """Who waits for a place, and has named what ticket it would get."""
        self._changed = anyio.Event()
        self._leave = anyio.Event()
        self._left = anyio.Event()

    def adopt(self, settings: TransferSettings) -> None:
        """Choose by other bounds from now on."""
        self._settings = settings
        self.core.adopt(settings)

    async def run(self, *, task_status: TaskStatus[None]) -> None:
        """Read the tickets, answer, see to deadlines; until cancelled, or drained."""
        log.info("%d tickets were found", await self._find_tickets())
        errands_in, errands_out = anyio.create_memory_object_stream[Errand](ERRANDS)
        self._errands = errands_in
        async with anyio.create_task_group() as tasks, errands_in, errands_out:
            unsubscribe = self._view.subscribe(self._on_change)
            try:
                async with self._bus.subscribe(self._subjects.every_load) as loads:
                    tasks.start_soon(self._outbox.run)
                    tasks.start_soon(self._hear_loads, loads)
                    tasks.start_soon(self._follow)
                    tasks.start_soon(self._sweep)
                    for _ in range(ERRANDS_AT_ONCE):
                        tasks.start_soon(self._run_errands, errands_out)
                    await self._serve(task_status)
                    await anyio.sleep_forever()
            finally:
                unsubscribe()

    async def drain(self) -> None:
        """Leave the group of replicas; what has been asked is answered."""
        self._leave.set()
        await self._left.wait()
        await self._outbox.settled()

    async def _find_tickets(self) -> int:
        """However long it takes until the store of tickets answers."""
        while True:
            try:
                return await self._shelf.open()
            except (BusTimeout, BusUnavailable) as error:
                log.warning("waiting for the tickets: %s", error)

    async def _serve(self, task_status: TaskStatus[None]) -> None:
        subjects = self._subjects
        endpoints = [
            Endpoint("begin", subjects.transfer("begin"), self._begin, concurrency=256),
            Endpoint("report", subjects.transfer("report"), self._report, concurrency=512),
            Endpoint("move", subjects.transfer("move"), self._move, concurrency=256),
            Endpoint("evacuate", subjects.transfer("evacuate"), self._evacuate, concurrency=64),
            Endpoint("list", subjects.transfer("list"), self._list),
        ]
        service = ServiceInfo("tokenplane-transfer", VERSION, "coordinates movements of KV blocks")
        async with self._bus.serve(service, endpoints):
            task_status.started()
            await self._leave.wait()
        self._left.set()

    # --- what gateways ask

    async def _begin(self, message: Message) -> bytes:
        asked = self._read(self._begins, message)
        if asked.id:
            _check_id(asked.id)
        context = extract(message.headers)
        with spans.start_as_current_span(
            "transfer.reserve", context=context, kind=SpanKind.SERVER
        ) as span:
            try:
                reply = await self._reserve(asked)
            except BusError as error:
                raise RequestRefused(503, f"tickets cannot be stored: {error}") from error
            except Taken as taken:
                raise RequestRefused(409, str(taken)) from taken
            if isinstance(reply, Granted):
                self._metrics.begun.labels("remote").inc()
                span.set_attribute("tokenplane.ticket", reply.ticket.id)
                span.set_attribute("tokenplane.prefill", reply.ticket.prefill.worker)
                span.set_attribute("tokenplane.decode", reply.ticket.decode.worker)
            else:
                self._metrics.begun.labels("local").inc()
                span.set_attribute("tokenplane.local", reply.reason)
                if reply.fallback:
                    self._metrics.fallbacks.labels(reply.reason).inc()
        return self._producer.seal(reply)

    async def _reserve(self, asked: Begin) -> BeginReply:
        for ticket in self.core.book.of_request(asked.request):
            if ticket.id == asked.id:  # heard twice
                return Granted(ticket)
            await self._by_itself(ticket, Step.CANCEL, "superseded")
        reply = self._plan(asked)
        with self._waits_for_place(asked.id):
            while isinstance(reply, Local) and reply.reason == DECODE_FULL:
                await self._changed.wait()
                reply = self._plan(asked)
        if isinstance(reply, Local):
            return reply
        walk = reply
        walk.ticket = msgspec.structs.replace(walk.ticket, trace=inject())
        await self._shelf.add(walk)
        self._has_happened(walk)
        return Granted(walk.ticket)

    @contextmanager
    def _waits_for_place(self, id: TicketId) -> Iterator[None]:
        """For some time, and not after the asker has said that nothing is wanted any more."""
        with anyio.move_on_after(self._settings.place_wait_s) as patience:
            self._waiting[id] = patience
            try:
                yield
            finally:
                self._waiting.pop(id, None)

    def _plan(self, asked: Begin) -> Walk | Local:
        return self.core.begin(asked, asked.id or self._new_id(), self._clock())

    def _new_id(self) -> TicketId:
        return new_ticket_id(self._rng)

    async def _report(self, message: Message) -> bytes:
        said = self._read(self._reports, message)
        name = "transfer.staged" if said.step is Step.TRANSFER else f"transfer.{said.step}"
        with spans.start_as_current_span(
            name, context=extract(message.headers), kind=SpanKind.SERVER
        ) as span:
            span.set_attribute("tokenplane.ticket", said.ticket)
            reply = await self._hear(said)
            if isinstance(reply, Denied):
                self._metrics.denied.labels(reply.reason).inc()
                span.set_attribute("tokenplane.denied", reply.reason)
            else:
                span.set_attribute("tokenplane.state", reply.ticket.state)
        return self._producer.seal(reply)

    async def _hear(self, said: Report) -> ReportReply:
        if said.step in (Step.FAIL, Step.CANCEL) and said.ticket in self._waiting:
            self._waiting[said.ticket].cancel()
        try:
            walk = await self._step(said)
            with anyio.move_on_after(ADMIT_S):
                while walk.waits:
                    await self._changed.wait()
                    walk = await self._step(said)
        except Refused as refusal:
            known = self.core.book.get(said.ticket)
            return Denied(refusal.reason, str(refusal), known[0].state if known else None)
        except BusError as error:
            raise RequestRefused(503, f"tickets cannot be stored: {error}") from error
        if walk.ticket.state is State.FAILED and said.step is not Step.FAIL:
            return Denied("no_worker", walk.ticket.cause, State.FAILED)
        return Stepped(walk.ticket)

    async def _step(self, said: Report) -> Walk:
        walk = await self._shelf.change(
            said.ticket, lambda ticket: self.core.report(ticket, said, self._clock())
        )
        if said.step is Step.LAND and walk.made:
            self.core.landed(walk.ticket, said)
        self._has_happened(walk)
        return walk

    async def _move(self, message: Message) -> bytes:
        asked = self._read(self._asked_moves, message)
        try:
            return self._producer.seal(await self._moves.move(asked, message.headers))
        except BusError as error:
            raise RequestRefused(503, f"tickets cannot be stored: {error}") from error

    async def _evacuate(self, message: Message) -> bytes:
        said = self._read(self._evacuations, message)
        try:
            return self._producer.seal(await self._moves.evacuate(said, message.headers))
        except BusError as error:
            raise RequestRefused(503, f"tickets cannot be stored: {error}") from error

    async def _list(self, message: Message) -> bytes:
        del message
        return self._producer.seal(Tickets(tuple(self.core.book)))

    def _read(self, reader: Reader[T], message: Message) -> T:
        try:
            return reader.open(message.data).body
        except Unreadable as error:
            raise RequestRefused(400, str(error)) from error

    # --- what happens by itself

    async def _sweep(self) -> None:
        """Deadlines, duties left undone, tickets that are over."""
        while True:
            await anyio.sleep(self._settings.sweep_s)
            now_s = self._clock()
            self.core.rates.forget_late(now_s)
            try:
                # First: where the bucket is full, nothing else can be written.
                for ticket in self.core.forgettable(now_s):
                    await self._shelf.remove(ticket)
                for ticket in self.core.due(now_s):
                    await self._by_itself(ticket, Step.EXPIRE, f"{ticket.state} for too long")
                for ticket in self.core.undone(now_s):
                    self._send(ticket, claim=True)
            except BusError as error:
                log.warning("tickets cannot be seen to: %s", error)
            self._teller.gauge(self.core)

    async def _by_itself(self, ticket: Ticket, what: Step, cause: str) -> None:
        """A step that nobody asked for, unless somebody has done something meanwhile."""

        def make(now: Ticket) -> Walk:
            walk = Walk(now)
            unchanged = (now.sequence, now.deadline_s) == (ticket.sequence, ticket.deadline_s)
            if unchanged or what is Step.CANCEL:
                walk.go(what, self._clock(), self._settings, cause=cause)
            return walk

        with spans.start_as_current_span(f"transfer.{what}", context=extract(ticket.trace)) as span:
            span.set_attribute("tokenplane.ticket", ticket.id)
            span.set_attribute("tokenplane.cause", cause)
            try:
                self._has_happened(await self._shelf.change(ticket.id, make))
            except Refused as refusal:
                log.debug("ticket %s did not %s: %s", ticket.id, what, refusal)

    def _has_happened(self, walk: Walk) -> None:
        """A walk is stored: tell everyone, and do what is owed."""
        if not walk.made:
            return
        self._wake()
        self._teller.tell(walk)
        if walk.owes:
            self._send(walk.ticket, claim=False)

    def _send(self, ticket: Ticket, *, claim: bool) -> None:
        """Have the ticket's duties done; where too many wait already, a later sweep does it."""
        if self._errands is not None:
            with suppress(anyio.WouldBlock):
                self._errands.send_nowait((ticket, claim))

    async def _run_errands(self, errands: MemoryObjectReceiveStream[Errand]) -> None:
        async for ticket, claim in errands:
            if claim and not await self._duties.claim(ticket):
                continue
            for duty in ticket.owed:
                await self._duties.do(ticket, duty)

    async def _follow(self) -> None:
        while True:
            try:
                await self._shelf.follow(self._wake)
            except BusError as error:
                log.warning("what other replicas write is not heard: %s", error)
            await anyio.sleep(PAUSE_S)

    async def _hear_loads(self, messages: Subscription) -> None:
        async for message in messages:
            try:
                report = self._loads.open(message.data).body
            except Unreadable:
                continue  # routers count it
            self.core.saw_load(report)
            self._wake()

    def _on_change(self, change: Change) -> None:
        match change:
            case Joined(record) | Updated(record):
                self.core.fleet.records[record.worker] = record
            case Left(record):
                self.core.fleet.left(record.worker)
            case _:
                return
        self._wake()

    def _wake(self) -> None:
        """Whoever waits for a place, or for a transfer to be let in, looks again."""
        self._changed.set()
        self._changed = anyio.Event()


def _check_id(id: TicketId) -> None:
    try:
        check_name(id, "a ticket's name")
    except BadName as error:
        raise RequestRefused(400, str(error)) from error
