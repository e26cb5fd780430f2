"""A request that goes to a worker which lacks what another one holds of its prompt.

The router says who has it; the coordinator moves it where that is predicted to be quicker than
computing it. The request waits meanwhile, no longer than the computing would take, and goes on
whatever comes of it.
"""

from __future__ import annotations

from opentelemetry.trace import SpanKind

from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.tickets import Tickets
from controlplane.runtime.tracing import tracer
from proto.ids import RequestId
from proto.route import Chosen
from proto.transfers import Moved, fetch

spans = tracer("tokenplane.gateway")


class Fetching:
    """Of one gateway."""

    def __init__(self, tickets: Tickets, metrics: GatewayMetrics, patience_s: float) -> None:
        self._tickets = tickets
        self._metrics = metrics
        self._patience_s = patience_s

    async def fetch(self, request: RequestId, model: str, chosen: Chosen) -> bool:
        """True if the chosen worker has got it."""
        there = chosen.elsewhere
        if there is None or not self._patience_s:
            return False
        asked = fetch(request, model, chosen.worker, there, self._patience_s)
        with spans.start_as_current_span("gateway.fetch", kind=SpanKind.CLIENT) as span:
            span.set_attribute("tokenplane.source", there.worker)
            span.set_attribute("tokenplane.worker", chosen.worker)
            reply = await self._tickets.move(asked)
            outcome = "moved" if isinstance(reply, Moved) else reply.reason
            span.set_attribute("tokenplane.outcome", outcome)
        self._metrics.fetches.labels(outcome).inc()
        return isinstance(reply, Moved)
