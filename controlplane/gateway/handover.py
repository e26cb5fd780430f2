"""A request in two legs: one worker prefills, another one fetches the blocks and decodes.

The coordinator says whether, and between whom; it gives a ticket. We carry the prompt to both
engines ourselves, and report how far we are. What may fail has a way on, and each is counted:

    the prefill leg fails           another prefill worker; else the decode worker prefills
    the decode worker is lost       another one reads what is staged, while its lease holds
    the decode worker cannot read   another prefill worker; else the decode worker prefills
    anything after the first token  as for any other request (`migration`)

Whatever happens, the ticket is told of it, so that no engine keeps blocks that nobody wants.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import anyio
import msgspec
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from controlplane.gateway.attempt import JSON, Attempts
from controlplane.gateway.dialects import Dialect, NoHandle, dialect_of, obstacle
from controlplane.gateway.flight import CANCELLED, COMPLETED, EngineFailed, Flight, Sink
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.migration import Leg
from controlplane.gateway.openai import ClientError
from controlplane.gateway.pulse import Pulse
from controlplane.gateway.routing import Routing, leg_request
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.telling import Teller
from controlplane.gateway.tickets import Tickets, landed
from controlplane.registry.view import RegistryView
from controlplane.runtime.tracing import inject, step, tracer
from proto.ids import RequestId, ServiceId, WorkerId
from proto.progress import Phase
from proto.route import Chosen
from proto.transfers import Begin, Denied, Granted, Local, Part, Report, State, Step, Ticket
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts
from proto.workers import WorkerRecord

log = logging.getLogger(__name__)
spans = tracer("tokenplane.gateway")

ANSWER_BYTES_MAX = 4 << 20
ADMIT_TRIES = 60
"""A transfer that is not let in is asked for again, as long as its lease holds."""
LEASE_MARGIN_S = 1.0
"""Blocks are not asked for so shortly before their lease is over. The coordinator's margin, when it
lets a transfer begin, is larger."""
LOST = frozenset({"engine_unreachable", "engine_lost", "engine_silent"})


class Gone(Exception):
    """The ticket leads nowhere any more; the decode worker has to prefill by itself."""


class Told(NamedTuple):
    """Who hears how it goes."""

    tickets: Tickets
    teller: Teller
    metrics: GatewayMetrics


@dataclass
class _Journey:
    """One request under one ticket."""

    flight: Flight
    chosen: Chosen
    leg: Leg
    sink: Sink
    ticket: Ticket
    excluded: list[WorkerId] = field(default_factory=list)
    staged_s: float = 0.0
    """By our clock, since when its blocks may be staged."""


class Handover:
    """Makes an attempt in two legs where that is worth it, else in one."""

    def __init__(
        self,
        attempts: Attempts,
        http: Http,
        view: RegistryView,
        routing: Routing,
        told: Told,
        owner: ServiceId,
        pulse: Pulse,
    ) -> None:
        self._attempts = attempts
        self._http = http
        self._view = view
        self._routing = routing
        self._told = told
        self._tickets = told.tickets
        self._metrics = told.metrics
        self._owner = owner
        self._pulse = pulse

    def adopt(self, settings: GatewaySettings) -> None:
        """As `Attempts.adopt`."""
        self._attempts.adopt(settings)

    async def make(self, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink) -> None:
        """As `Attempts.make`."""
        decided = await self._decide(flight, chosen, leg)
        if isinstance(decided, Local):
            if decided.reason:
                outcome = "fallback" if decided.fallback else "local"
                self._metrics.handovers.labels(outcome, decided.reason).inc()
            await self._attempts.make(flight, chosen, leg, sink)
            return
        journey = _Journey(flight, chosen, leg, sink, decided)
        try:
            await self._travel(journey)
        except Gone as reason:
            log.warning("request %s is prefilled where it decodes: %s", flight.request, reason)
            self._metrics.handovers.labels("fallback", "gone").inc()
            await self._attempts.make(flight, chosen, leg, sink)
        else:
            self._metrics.handovers.labels("remote", "").inc()

    async def _decide(self, flight: Flight, chosen: Chosen, leg: Leg) -> Ticket | Local:
        """A ticket; or no reason, where there is nothing to decide."""
        record = self._view.workers.get(chosen.worker)
        if record is None or not self._routing.splits(record):
            return Local("")
        if why := obstacle(leg):
            return Local("cannot_be_split", why)
        prefill = await self._routing.choose_prefill(
            flight.request, flight.ask, flight.tokens, flight.hints, flight.attempts, flight.failed
        )
        asked = Begin(
            request=flight.request,
            model=record.model,
            owner=self._owner,
            prompt_tokens=flight.prompt_tokens,
            decode=_part(chosen),
            prefill=None if prefill is None else _part(prefill),
            exclude=tuple(flight.failed),
        )
        reply = await self._tickets.begin(asked)
        decided = reply.ticket if isinstance(reply, Granted) else reply
        ticket = decided if isinstance(decided, Ticket) else None
        if prefill is not None and (ticket is None or ticket.prefill.worker != prefill.worker):
            self._unwanted(flight, leg_request(flight.request), prefill.worker)
        if ticket is not None and ticket.decode.worker != chosen.worker:
            self._unwanted(flight, flight.request, chosen.worker)
        return decided

    # --- under a ticket

    async def _travel(self, journey: _Journey) -> None:
        """Raises `Gone` if nothing has been sent to the client, and all that `Attempts.make`
        does; then the ticket has ended."""
        try:
            while not await self._both_legs(journey):
                pass
        except Gone:
            raise
        except EngineFailed as failure:
            self._tickets.give_up(journey.ticket, Step.FAIL, failure.reason)
            raise
        except ClientError as error:
            self._tickets.give_up(journey.ticket, Step.CANCEL, error.code)
            raise
        except BaseException:
            self._tickets.give_up(journey.ticket, Step.CANCEL, "cancelled")
            raise

    async def _both_legs(self, journey: _Journey) -> bool:
        """False: once more, under the ticket as it is now."""
        prefill = self._record(journey.ticket.prefill.worker)
        dialect = None if prefill is None else dialect_of(prefill, journey.ticket.order)
        if prefill is None or dialect is None:
            self._tickets.give_up(journey.ticket, Step.FAIL, "no_dialect")
            raise Gone(f"{journey.ticket.prefill.worker} is gone, or cannot be talked to")
        if journey.ticket.state is State.PREFILLING:
            answer = await self._prefilled(journey, dialect, prefill)
            if answer is None:
                return False
            try:
                handle = dialect.handle(answer)
            except NoHandle as error:
                await self._other_prefill(journey, str(error))
                return False
            await self._start_transfer(journey, handle)
            return await self._decode(journey, dialect, prefill)
        if journey.ticket.handle:
            return await self._decode(journey, dialect, prefill)
        return await self._overlapped(journey, dialect, prefill)

    async def _prefilled(
        self, journey: _Journey, dialect: Dialect, prefill: WorkerRecord
    ) -> bytes | None:
        """The prefill engine's answer; None if another one is to try."""
        leg = dialect.prefill(journey.leg, journey.ticket, prefill)
        began_s = anyio.current_time()
        try:
            answer = await self._prefill(journey, leg, prefill)
        except EngineFailed as failure:
            self._routing.inhibit(prefill.worker)
            await self._other_prefill(journey, str(failure))
            return None
        # If we stood still meanwhile, the answer may have waited for us all that time.
        now_s = anyio.current_time()
        journey.staged_s = now_s - self._pulse.stood_still_s(began_s, now_s)
        return answer

    async def _prefill(self, journey: _Journey, leg: Leg, prefill: WorkerRecord) -> bytes:
        flight = journey.flight
        headers = {"content-type": JSON, "x-request-id": flight.request}
        patience_s = max(1.0, journey.ticket.deadline_s - journey.ticket.changed_s)
        timeouts = HttpTimeouts(connect_s=2.0, first_byte_s=patience_s, idle_s=patience_s)
        with step(spans, "gateway.prefill", SpanKind.CLIENT) as span:
            span.set_attribute("tokenplane.worker", prefill.worker)
            span.set_attribute("tokenplane.ticket", journey.ticket.id)
            with self._told_of_prefill(flight, prefill.worker):
                try:
                    async with self._http.exchange(
                        "POST",
                        prefill.url + leg.path,
                        body=leg.body,
                        headers={**headers, **inject()},
                        timeouts=timeouts,
                    ) as response:
                        answer = await response.read(limit_bytes=ANSWER_BYTES_MAX)
                        status = response.status
                except HttpError as error:
                    raise EngineFailed("prefill_lost", str(error)) from error
        if 400 <= status < 500 and status != 429:
            # Wrong in itself: the decode worker's own answer tells the client.
            self._tickets.give_up(journey.ticket, Step.FAIL, "rejected")
            raise Gone(f"the prefill engine answered {status}")
        if status != 200:
            raise EngineFailed("prefill_refused", f"HTTP {status}")
        return answer

    async def _start_transfer(self, journey: _Journey, handle: bytes) -> None:
        """Blocks are staged; wait until they may be moved."""
        ticket = journey.ticket
        for _ in range(ADMIT_TRIES):
            reply = await self._tickets.report(
                Report(
                    ticket.id,
                    ticket.fence,
                    Step.TRANSFER,
                    handle=handle,
                    age_s=anyio.current_time() - journey.staged_s,
                )
            )
            journey.ticket = self._or_gone(journey, reply)
            if journey.ticket.state is State.TRANSFERRING:
                return
        self._tickets.give_up(ticket, Step.CANCEL, "not_let_in")
        raise Gone("its transfer was not let in")

    async def _decode(self, journey: _Journey, dialect: Dialect, prefill: WorkerRecord) -> bool:
        ticket = journey.ticket
        if anyio.current_time() > journey.staged_s + ticket.lease_s - LEASE_MARGIN_S:
            # An engine may read blocks that are another request's by now, and not notice.
            self._tickets.give_up(ticket, Step.FAIL, "lease_over")
            raise Gone(f"the lease of ticket {ticket.id} ran out before it was read")
        leg = dialect.decode(journey.leg, ticket, prefill, ticket.handle)
        try:
            await self._decode_leg(journey, leg)
        except EngineFailed as failure:
            if journey.flight.started:
                raise
            await self._again(journey, failure)
            return False
        return True

    async def _overlapped(self, journey: _Journey, dialect: Dialect, prefill: WorkerRecord) -> bool:
        """Both legs at once; the prefill leg's answer says nothing that we need."""
        failure: Exception | None = None
        prefill_failed: list[EngineFailed] = []

        async def prefill_leg(decoding: anyio.CancelScope) -> None:
            try:
                leg = dialect.prefill(journey.leg, journey.ticket, prefill)
                await self._prefill(journey, leg, prefill)
            except (EngineFailed, Gone) as error:
                prefill_failed.append(EngineFailed("prefill_lost", str(error)))
                if not journey.flight.started:
                    decoding.cancel()

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as decoding:
                tasks.start_soon(prefill_leg, decoding)
                try:
                    leg = dialect.decode(journey.leg, journey.ticket, prefill, b"")
                    await self._decode_leg(journey, leg)
                except (EngineFailed, ClientError) as error:
                    failure = error
            tasks.cancel_scope.cancel()
        if decoding.cancelled_caught:
            self._routing.inhibit(prefill.worker)
            await self._other_prefill(journey, str(prefill_failed[0]))
            return False
        if isinstance(failure, EngineFailed) and not journey.flight.started:
            await self._other_prefill(journey, str(failure))
            return False
        if failure is not None:
            raise failure
        return True

    async def _decode_leg(self, journey: _Journey, leg: Leg) -> None:
        ticket = journey.ticket
        chosen = journey.chosen
        if chosen.worker != ticket.decode.worker:
            end = ticket.decode
            chosen = msgspec.structs.replace(
                chosen, worker=end.worker, incarnation=end.incarnation, url=end.url
            )
        sink = _Landing(journey.sink, self._tickets, ticket)
        try:
            await self._attempts.make(journey.flight, chosen, leg, sink)
        finally:
            sink.close()

    async def _again(self, journey: _Journey, failure: EngineFailed) -> None:
        """The decode leg has failed before its first token: whose fault was it?"""
        if failure.reason in LOST:
            worker = journey.ticket.decode.worker
            self._routing.inhibit(worker)
            journey.excluded.append(worker)
            reply = await self._report(journey, Step.OTHER_DECODE, str(failure))
            if isinstance(reply, Ticket):
                journey.ticket = reply
                if reply.state is State.STAGED:
                    await self._start_transfer(journey, reply.handle)
                return
            self._tickets.give_up(journey.ticket, Step.FAIL, failure.reason)
            raise failure
        await self._other_prefill(journey, str(failure))

    async def _other_prefill(self, journey: _Journey, why: str) -> None:
        log.warning("request %s needs another prefill worker: %s", journey.flight.request, why)
        journey.excluded.append(journey.ticket.prefill.worker)
        reply = await self._report(journey, Step.OTHER_PREFILL, why)
        journey.ticket = self._or_gone(journey, reply)

    async def _report(self, journey: _Journey, step: Step, why: str) -> Ticket | Denied:
        ticket, excluded = journey.ticket, tuple(journey.excluded)
        self._metrics.handovers.labels("retry", step.value).inc()
        return await self._tickets.report(
            Report(ticket.id, ticket.fence, step, cause=why[:200], exclude=excluded)
        )

    def _or_gone(self, journey: _Journey, reply: Ticket | Denied) -> Ticket:
        if isinstance(reply, Ticket):
            return reply
        self._tickets.give_up(journey.ticket, Step.CANCEL, reply.reason)
        raise Gone(reply.detail)

    @contextmanager
    def _told_of_prefill(self, flight: Flight, worker: WorkerId) -> Iterator[None]:
        """While a prefill leg runs on the worker: routers and its agent know."""
        outcome, request, tell = CANCELLED, leg_request(flight.request), self._told.teller.tell_leg
        self._routing.opened(worker)
        try:
            tell(flight, request, worker, Phase.DISPATCHED)
            yield
            outcome = COMPLETED
        except EngineFailed as error:
            outcome = error.reason
            raise
        finally:
            self._routing.closed(worker)
            tell(flight, request, worker, Phase.ENDED, outcome)

    def _unwanted(self, flight: Flight, request: RequestId, worker: WorkerId) -> None:
        """What a router has booked on the worker is done by another one, or by nobody."""
        self._told.teller.tell_leg(flight, request, worker, Phase.ENDED, CANCELLED)

    def _record(self, worker: WorkerId) -> WorkerRecord | None:
        return self._view.workers.get(worker)


class _Landing:
    """A sink that tells when the first token comes: by then the blocks have landed."""

    def __init__(self, sink: Sink, tickets: Tickets, ticket: Ticket) -> None:
        self._sink = sink
        self._tickets = tickets
        self._ticket = ticket
        self._began_s = anyio.current_time()
        self._span = self._open("gateway.transfer")

    async def start(
        self, status: int, headers: Mapping[str, str], length: int | None = None
    ) -> None:
        self._span.end()
        self._span = self._open("gateway.decode")
        self._tickets.report_later(landed(self._ticket, anyio.current_time() - self._began_s))
        await self._sink.start(status, headers, length)

    async def write(self, data: bytes) -> None:
        await self._sink.write(data)

    def close(self) -> None:
        self._span.end()

    def _open(self, name: str) -> Span:
        context = trace.set_span_in_context(trace.get_current_span())
        span = spans.start_span(name, context=context)
        span.set_attribute("tokenplane.ticket", self._ticket.id)
        span.set_attribute("tokenplane.worker", self._ticket.decode.worker)
        return span


def _part(chosen: Chosen) -> Part:
    return Part(chosen.worker, chosen.incarnation, chosen.new_prefill_tokens)
