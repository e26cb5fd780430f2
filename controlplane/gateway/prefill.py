"""The prompt's way to the engine that prefills for another one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import SpanKind

from controlplane.gateway.attempt import JSON
from controlplane.gateway.flight import EngineFailed, Flight
from controlplane.gateway.migration import Leg
from controlplane.gateway.routing import Routing, leg_request
from controlplane.gateway.sse import usage_of
from controlplane.gateway.telling import Teller
from controlplane.runtime.tracing import inject, step, tracer
from proto.ids import WorkerId
from proto.progress import CANCELLED, COMPLETED, Phase
from proto.transfers import Ticket
from proto.wire.errors import HttpError
from proto.wire.ports import Http, HttpTimeouts
from proto.workers import WorkerRecord

spans = tracer("tokenplane.gateway")

ANSWER_BYTES_MAX = 4 << 20


class PrefillRefused(Exception):
    """The request is wrong in itself: the decode worker's own answer tells the client."""


class PrefillLegs:
    """Carries prompts; routers and the worker's agent hear of it."""

    def __init__(self, http: Http, routing: Routing, teller: Teller) -> None:
        self._http = http
        self._routing = routing
        self._teller = teller

    async def carry(self, flight: Flight, leg: Leg, prefill: WorkerRecord, ticket: Ticket) -> bytes:
        """The engine's answer. Raises `EngineFailed` and `PrefillRefused`."""
        headers = {"content-type": JSON, "x-request-id": flight.request}
        patience_s = max(1.0, ticket.deadline_s - ticket.changed_s)
        timeouts = HttpTimeouts(connect_s=2.0, first_byte_s=patience_s, idle_s=patience_s)
        with step(spans, "gateway.prefill", SpanKind.CLIENT) as span:
            span.set_attribute("tokenplane.worker", prefill.worker)
            span.set_attribute("tokenplane.ticket", ticket.id)
            with self._told(flight, prefill.worker):
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
            raise PrefillRefused(f"the prefill engine answered {status}")
        if status != 200:
            raise EngineFailed("prefill_refused", f"HTTP {status}")
        flight.prefill_usage = usage_of(answer)
        return answer

    @contextmanager
    def _told(self, flight: Flight, worker: WorkerId) -> Iterator[None]:
        """While a prefill leg runs on the worker: routers and its agent know."""
        outcome, request, tell = CANCELLED, leg_request(flight.request), self._teller.tell_leg
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
