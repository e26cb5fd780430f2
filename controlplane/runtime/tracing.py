"""OpenTelemetry tracing: spans, and trace context across the bus and HTTP.

    with tracer(__name__).start_as_current_span("route", context=extract(message.headers)):
        await bus.publish(subject, data, headers=inject())

Without a collector the API's own no-op tracer stays in place: spans cost next to nothing, and a
caller's trace context still passes through to whomever we call.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from controlplane.runtime.settings import TelemetrySettings

EXPORT_TIMEOUT_S = 5.0
SHUTDOWN_S = 1.0
COMPLAINT_INTERVAL_S = 60.0
TRACES_PATH = "/v1/traces"

_W3C = TraceContextTextMapPropagator()
_UNRECORDED = nullcontext(trace.INVALID_SPAN)


def tracer(name: str) -> trace.Tracer:
    """The tracer of a module; fine to take at import, before tracing is set up."""
    return trace.get_tracer(name)


def inject() -> dict[str, str]:
    """Headers that carry the current span to the next process; empty without one."""
    headers: dict[str, str] = {}
    _W3C.inject(headers)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The context that came in `headers`, whose names are in lower case; empty if none did."""
    return _W3C.extract(headers) if "traceparent" in headers else Context()


def step(
    spans: trace.Tracer, name: str, kind: trace.SpanKind = trace.SpanKind.INTERNAL
) -> AbstractContextManager[trace.Span]:
    """A span within the current one, which stays current where nobody records it: what is done for
    every request costs nothing then."""
    if trace.get_current_span().is_recording():
        return spans.start_as_current_span(name, kind=kind)
    return _UNRECORDED


def setup_tracing(service: str, settings: TelemetrySettings) -> Callable[[], None]:
    """Export spans if a collector is set, here or in OTEL_EXPORTER_OTLP_ENDPOINT; once a process.

    Spans leave in batches, on a thread of the SDK. A collector that does not answer costs spans,
    never requests. The returned function sends what is left and ends the export; it blocks for at
    most `SHUTDOWN_S` seconds, so an event loop calls it in a thread.
    """
    endpoint = settings.otlp_endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return lambda: None
    provider = make_provider(service, endpoint, settings.sample_ratio)
    trace.set_tracer_provider(provider)
    return lambda: _shut_down(provider)


def make_provider(service: str, endpoint: str, sample_ratio: float) -> TracerProvider:
    """A provider whose spans go to `endpoint`; a trace begun elsewhere keeps its caller's word
    on whether it is recorded."""
    provider = TracerProvider(
        resource=Resource.create({SERVICE_NAME: service, SERVICE_INSTANCE_ID: str(os.getpid())}),
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=_traces_url(endpoint), timeout=EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
    _quieten(logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter"))
    _quieten(logging.getLogger("opentelemetry.sdk._shared_internal"))
    return provider


def _traces_url(endpoint: str) -> str:
    base = endpoint.rstrip("/")
    return base if base.endswith(TRACES_PATH) else base + TRACES_PATH


def _shut_down(provider: TracerProvider) -> None:
    """The SDK waits up to 30 s for a collector that does not answer; we do not."""
    worker = threading.Thread(target=provider.shutdown, name="tracing-shutdown", daemon=True)
    worker.start()
    worker.join(SHUTDOWN_S)


class _Seldom(logging.Filter):
    """Lets one record a minute through: a collector that is away says so once, not every batch."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + COMPLAINT_INTERVAL_S
        return True


def _quieten(logger: logging.Logger) -> None:
    if not any(isinstance(each, _Seldom) for each in logger.filters):
        logger.addFilter(_Seldom())
