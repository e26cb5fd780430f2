"""A request in two legs: one worker prefills, another one fetches the blocks and decodes.

The coordinator says whether, and between whom; it gives a ticket. We carry the prompt to both
engines ourselves, and report how far we are (`journey`).
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from controlplane.gateway.attempt import Attempts
from controlplane.gateway.dialects import obstacle
from controlplane.gateway.fetching import Fetching
from controlplane.gateway.flight import Flight, Sink
from controlplane.gateway.journey import Gone, Journey, Means
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.migration import Leg
from controlplane.gateway.prefill import PrefillLegs
from controlplane.gateway.pulse import Pulse
from controlplane.gateway.routing import Routing, leg_request
from controlplane.gateway.settings import GatewaySettings
from controlplane.gateway.telling import Teller
from controlplane.gateway.tickets import Tickets
from controlplane.registry.view import RegistryView
from proto.ids import RequestId, ServiceId, WorkerId
from proto.progress import CANCELLED, Phase
from proto.route import Chosen
from proto.transfers import Begin, Granted, Local, Part, Ticket
from proto.wire.ports import Http

log = logging.getLogger(__name__)


class Told(NamedTuple):
    """Who hears how it goes, and is asked."""

    tickets: Tickets
    teller: Teller
    metrics: GatewayMetrics
    fetching: Fetching


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
        self._view = view
        self._routing = routing
        self._told = told
        self._owner = owner
        prefill = PrefillLegs(http, routing, told.teller)
        self._means = Means(
            attempts, prefill, view, routing, told.tickets, told.metrics, pulse, told.fetching
        )

    def adopt(self, settings: GatewaySettings) -> None:
        """As `Attempts.adopt`."""
        self._attempts.adopt(settings)

    async def make(self, flight: Flight, chosen: Chosen, leg: Leg, sink: Sink) -> None:
        """As `Attempts.make`."""
        handovers = self._told.metrics.handovers
        flight.prefill_usage = None
        decided = await self._decide(flight, chosen, leg)
        if isinstance(decided, Local):
            if decided.reason:
                outcome = "fallback" if decided.fallback else "local"
                handovers.labels(outcome, decided.reason).inc()
            await self._told.fetching.fetch(flight.request, self._model(chosen), chosen)
            await self._attempts.make(flight, chosen, leg, sink)
            return
        ticket, prefill = decided
        try:
            await Journey(self._means, flight, chosen, leg, sink, ticket).travel(prefill)
        except Gone as reason:
            log.warning("request %s is prefilled where it decodes: %s", flight.request, reason)
            handovers.labels("fallback", "gone").inc()
            flight.prefill_usage = None
            await self._attempts.make(flight, chosen, leg, sink)
        else:
            handovers.labels("remote", "").inc()

    async def _decide(
        self, flight: Flight, chosen: Chosen, leg: Leg
    ) -> tuple[Ticket, Chosen | None] | Local:
        """A ticket, and the router's choice of who prefills, if it is of that one; or no reason,
        where there is nothing to decide."""
        record = self._view.workers.get(chosen.worker)
        if record is None or not self._routing.splits(record):
            return Local("")
        if why := obstacle(flight.ask, leg):
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
        reply = await self._told.tickets.begin(asked)
        ticket = reply.ticket if isinstance(reply, Granted) else None
        if prefill is not None and (ticket is None or ticket.prefill.worker != prefill.worker):
            self._unwanted(flight, leg_request(flight.request), prefill.worker)
            prefill = None
        if ticket is not None and ticket.decode.worker != chosen.worker:
            self._unwanted(flight, flight.request, chosen.worker)
        return (reply.ticket, prefill) if isinstance(reply, Granted) else reply

    def _model(self, chosen: Chosen) -> str:
        record = self._view.workers.get(chosen.worker)
        return record.model if record else ""

    def _unwanted(self, flight: Flight, request: RequestId, worker: WorkerId) -> None:
        """What a router has booked on the worker is done by another one, or by nobody."""
        self._told.teller.tell_leg(flight, request, worker, Phase.ENDED, CANCELLED)


def _part(chosen: Chosen) -> Part:
    return Part(chosen.worker, chosen.incarnation, chosen.new_prefill_tokens)
