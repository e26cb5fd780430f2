"""What a request leaves behind: metrics, attributes of its span, and one record."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from opentelemetry import trace
from opentelemetry.trace import Span, StatusCode, format_trace_id

from controlplane.gateway.flight import Flight
from controlplane.gateway.metrics import GatewayMetrics
from controlplane.gateway.models import served
from controlplane.gateway.openai import Api, Ask
from controlplane.gateway.routing import Hints
from controlplane.registry.view import RegistryView
from controlplane.runtime.version import VERSION
from proto.ids import RequestId
from proto.progress import CANCELLED, COMPLETED
from proto.records import RequestRecord

OPERATIONS = {
    Api.COMPLETIONS: "text_completion",
    Api.CHAT: "chat",
    Api.RESPONSES: "responses",
    Api.EMBEDDINGS: "embeddings",
}
"""As OpenTelemetry's GenAI conventions call them."""


class Accounting:
    """Opens a flight when a request arrives, and writes down what became of it."""

    def __init__(
        self,
        metrics: GatewayMetrics,
        view: RegistryView,
        write_record: Callable[[RequestRecord], None],
        clock: Callable[[], float],
    ) -> None:
        self.metrics = metrics
        self._view = view
        self._write_record = write_record
        self._clock = clock

    def opened(self, request: RequestId, ask: Ask, hints: Hints) -> Flight:
        """A request has arrived."""
        self.metrics.in_flight.inc()
        return Flight(request, ask, hints, self._clock(), anyio.current_time())

    def ended(self, flight: Flight) -> None:
        """Once for each request, however it ended."""
        metrics, model = self.metrics, flight.ask.model
        metrics.in_flight.dec()
        # A model that nobody serves must not become a label: clients make those names up.
        label = model if served(self._view, model) else "unknown"
        metrics.requests.labels(label, flight.outcome).inc()
        metrics.tokens.labels(label, "prompt").inc(flight.prompt_tokens)
        if flight.cached_tokens is not None:
            metrics.tokens.labels(label, "told").inc(flight.prompt_tokens)
            metrics.tokens.labels(label, "cached").inc(flight.cached_tokens)
        metrics.tokens.labels(label, "predicted").inc(flight.predicted_cached_tokens)
        metrics.tokens.labels(label, "output").inc(flight.output_tokens)
        metrics.duration_s.labels(label, flight.outcome).observe(
            anyio.current_time() - flight.began_s
        )
        metrics.prompt_tokens.labels(label).observe(flight.prompt_tokens)
        metrics.output_tokens.labels(label).observe(flight.output_tokens)
        if flight.ttft_s is not None:
            metrics.ttft_s.labels(label).observe(flight.ttft_s)
        if flight.tpot_s is not None:
            metrics.tpot_s.labels(label).observe(flight.tpot_s)
        self._count_drafts(label, flight)
        span = trace.get_current_span()
        _describe(span, flight)
        trace_id = span.get_span_context().trace_id
        self._write_record(
            flight.record(anyio.current_time(), format_trace_id(trace_id) if trace_id else "")
        )

    def _count_drafts(self, label: str, flight: Flight) -> None:
        """By model, kind of text and sampling (SD3), for what its engine has told."""
        metrics, after_first = self.metrics, max(0, flight.output_tokens - 1)
        of = (label, flight.ask.kind.value, "sampled" if flight.ask.sampled else "greedy")
        speculating = "yes" if flight.accepted_drafts is not None else "no"
        accepted = min(flight.accepted_drafts or 0, after_first)
        passes = after_first - accepted
        metrics.passes.labels(*of, speculating).inc(passes)
        if flight.ttft_s is not None:
            metrics.speculation_ttft_s.labels(*of, speculating).observe(flight.ttft_s)
        if flight.tpot_s is not None:
            metrics.speculation_tpot_s.labels(*of, speculating).observe(flight.tpot_s)
        metrics.emission_gap_s.labels(*of, speculating).observe_all(flight.gaps_s)
        if flight.accepted_drafts is not None:
            metrics.drafts.labels(*of, "accepted").inc(flight.accepted_drafts)
            metrics.drafts.labels(*of, "rejected").inc(flight.rejected_drafts)
            if passes:
                metrics.accept_length.labels(*of).observe(after_first / passes)


def _describe(span: Span, flight: Flight) -> None:
    if not span.is_recording():
        return
    span.set_attribute("gen_ai.operation.name", OPERATIONS[flight.ask.api])
    span.set_attribute("gen_ai.request.model", flight.ask.model)
    span.set_attribute("gen_ai.usage.input_tokens", flight.prompt_tokens)
    span.set_attribute("gen_ai.usage.output_tokens", flight.output_tokens)
    span.set_attribute("tokenplane.request", flight.request)
    span.set_attribute("tokenplane.outcome", flight.outcome)
    span.set_attribute("tokenplane.attempts", flight.attempts)
    span.set_attribute("tokenplane.predicted_cached_tokens", flight.predicted_cached_tokens)
    span.set_attribute("tokenplane.tenant", flight.hints.tenant.name)
    span.set_attribute("tokenplane.policy", flight.policy)
    span.set_attribute("tokenplane.router", flight.router)
    span.set_attribute("tokenplane.engine", flight.engine)
    span.set_attribute("tokenplane.version", VERSION)
    if flight.cached_tokens is not None:
        span.set_attribute("gen_ai.usage.cache_read.input_tokens", flight.cached_tokens)
    if flight.ttft_s is not None:
        span.set_attribute("tokenplane.ttft_ms", flight.ttft_s * 1000)
    if flight.worker is not None:
        span.set_attribute("tokenplane.worker", flight.worker)
    if flight.outcome not in (COMPLETED, CANCELLED):
        span.set_attribute("error.type", flight.outcome)
        span.set_status(StatusCode.ERROR)
