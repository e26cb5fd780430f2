"""When the first token comes, the blocks have landed."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
from opentelemetry import trace
from opentelemetry.trace import Span

from controlplane.gateway.flight import Sink
from controlplane.gateway.tickets import Tickets, landed
from controlplane.runtime.tracing import tracer
from proto.transfers import Ticket

spans = tracer("tokenplane.gateway")


class Landing(Sink):
    """A sink that tells the ticket so."""

    def __init__(self, sink: Sink, tickets: Tickets, ticket: Ticket) -> None:
        self._sink = sink
        self._tickets = tickets
        self._ticket = ticket
        self._began_s = anyio.current_time()
        self._span = self._open("gateway.transfer")

    def start(self, status: int, headers: Mapping[str, str], length: int | None = None) -> None:
        self._span.end()
        self._span = self._open("gateway.decode")
        self._tickets.report_later(landed(self._ticket, anyio.current_time() - self._began_s))
        self._sink.start(status, headers, length)

    def put(self, data: bytes) -> bool:
        return self._sink.put(data)

    async def writable(self) -> None:
        await self._sink.writable()

    def finish(self) -> None:
        self._sink.finish()

    def close(self) -> None:
        self._span.end()

    def _open(self, name: str) -> Span:
        context = trace.set_span_in_context(trace.get_current_span())
        span = spans.start_span(name, context=context)
        span.set_attribute("tokenplane.ticket", self._ticket.id)
        span.set_attribute("tokenplane.worker", self._ticket.decode.worker)
        return span
