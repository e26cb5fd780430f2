"""Tracing: context over a process border, export to a real receiver, and no collector at all."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from controlplane.runtime.settings import TelemetrySettings
from controlplane.runtime.tracing import (
    extract,
    inject,
    make_provider,
    setup_tracing,
    step,
    tracer,
)
from tests.support.otlp_receiver import OtlpReceiver, otlp_receiver

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The example of the W3C recommendation."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as running:
        yield running


@pytest.fixture
def gateway(receiver: OtlpReceiver) -> Iterator[TracerProvider]:
    yield from provider("gateway", receiver)


@pytest.fixture
def router(receiver: OtlpReceiver) -> Iterator[TracerProvider]:
    yield from provider("router", receiver)


def provider(service: str, receiver: OtlpReceiver) -> Iterator[TracerProvider]:
    made = make_provider(service, receiver.endpoint, 1.0)
    yield made
    made.shutdown()


def test_a_trace_goes_on_in_the_next_process(
    receiver: OtlpReceiver, gateway: TracerProvider, router: TracerProvider
) -> None:
    with gateway.get_tracer("g").start_as_current_span("request") as asked:
        headers = inject()
    with router.get_tracer("r").start_as_current_span("route", context=extract(headers)):
        pass
    gateway.force_flush()
    router.force_flush()
    trace_id = trace.format_trace_id(asked.get_span_context().trace_id)
    spans = receiver.wait_for(lambda spans: sum(s.trace_id == trace_id for s in spans) == 2)
    request, route = sorted((s for s in spans if s.trace_id == trace_id), key=lambda s: s.start_ns)
    assert (request.service, request.name) == ("gateway", "request")
    assert (route.service, route.name) == ("router", "route")
    assert request.parent_id == ""
    assert route.parent_id == request.span_id


def test_a_caller_decides_whether_its_trace_is_recorded() -> None:
    ratio_0 = make_provider("s", "http://127.0.0.1:1", 0.0)
    recorded = ratio_0.get_tracer("t").start_span("s", context=extract({"traceparent": CALLER}))
    own = ratio_0.get_tracer("t").start_span("s")
    assert recorded.is_recording()
    assert not own.is_recording()
    ratio_0.shutdown()


def test_without_a_collector_the_callers_context_passes_through() -> None:
    with tracer("nobody").start_as_current_span("s", context=extract({"traceparent": CALLER})) as s:
        assert not s.is_recording()
        assert inject() == {"traceparent": CALLER}


def test_a_step_is_a_span_only_where_somebody_records() -> None:
    recording = make_provider("s", "http://127.0.0.1:1", 1.0)
    spans = recording.get_tracer("t")
    with step(spans, "alone") as alone:
        assert not alone.is_recording()
    caller = extract({"traceparent": CALLER.replace("-01", "-00")})
    with spans.start_as_current_span("unrecorded", context=caller), step(spans, "within"):
        assert inject()["traceparent"].endswith("-00")
    with spans.start_as_current_span("recorded") as outer, step(spans, "within") as inner:
        assert inner.is_recording() and inner is trace.get_current_span()
        assert inner.get_span_context().trace_id == outer.get_span_context().trace_id
    recording.shutdown()


def test_without_a_span_there_is_nothing_to_carry() -> None:
    assert inject() == {}


@pytest.mark.parametrize("header", ["", "nonsense", CALLER.replace("00-", "ff-", 1)])
def test_a_bad_header_is_no_header(header: str) -> None:
    assert not trace.get_current_span(extract({"traceparent": header})).get_span_context().is_valid


def test_no_endpoint_sets_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    before = trace.get_tracer_provider()
    setup_tracing("s", TelemetrySettings())()
    assert trace.get_tracer_provider() is before


PROCESS = textwrap.dedent(
    """
    import logging, sys
    from controlplane.runtime import tracing
    from controlplane.runtime.settings import TelemetrySettings
    from controlplane.runtime.tracing import setup_tracing, tracer

    tracing.EXPORT_TIMEOUT_S = 600
    early = tracer("taken before the setup")
    logging.basicConfig(level="INFO", stream=sys.stderr)
    flush = setup_tracing("agent", TelemetrySettings(otlp_endpoint=(sys.argv + [None])[1]))
    for i in range(2000):
        with early.start_as_current_span("work", attributes={"i": i}):
            pass
    flush()
    """
)


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROCESS, *argv],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20,
        check=True,
    )


@pytest.mark.parametrize("by", ["settings", "environment"])
def test_a_process_sends_all_its_spans_before_it_ends(by: str) -> None:
    with otlp_receiver() as own:
        if by == "settings":
            run(own.endpoint)
        else:
            run(OTEL_EXPORTER_OTLP_ENDPOINT=own.endpoint)
        spans = own.spans
    assert {s.service for s in spans} == {"agent"}
    assert {s.attributes["i"] for s in spans} == set(range(2000))


def test_an_unreachable_collector_is_mentioned_once_and_hurts_nobody() -> None:
    with socket.socket() as bound:  # bound, not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        done = run(f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert "Connection refused" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_collector_that_never_answers_does_not_hold_up_the_end() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        run(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")


@pytest.fixture(autouse=True)
def library_filters() -> Iterator[None]:
    """`make_provider` puts filters on loggers of the SDK; other tests want them as they were."""
    loggers = [
        logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter"),
        logging.getLogger("opentelemetry.sdk._shared_internal"),
    ]
    before = [list(logger.filters) for logger in loggers]
    yield
    for logger, filters in zip(loggers, before, strict=True):
        logger.filters[:] = filters
