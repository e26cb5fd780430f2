"""A small store of spans, for clusters that have no Jaeger: the last traces, in memory.

It takes OTLP over HTTP like any collector, forgets the oldest traces when it is full, and is gone
with its process. `tokenplane up` uses it unless it is told of a collector.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Iterator

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from controlplane.runtime.traces import Span, Value

REQUEST = "tokenplane.request"
ACCEPTED = ExportTraceServiceResponse().SerializeToString()


class NotSpans(ValueError):
    """These bytes are no export of spans."""


class SpanStore:
    """At most `spans_max` spans; the trace that was spoken of longest ago goes first, and of one
    that is longer than that its own oldest."""

    def __init__(self, spans_max: int) -> None:
        self._spans_max = spans_max
        self._count = 0
        self._traces: OrderedDict[str, deque[Span]] = OrderedDict()
        self._by_request: dict[str, str] = {}

    def __len__(self) -> int:
        return self._count

    def take(self, body: bytes) -> None:
        """Keep the spans of one export. Raises `NotSpans`."""
        try:
            export = ExportTraceServiceRequest.FromString(body)
        except DecodeError as error:
            raise NotSpans("not an OTLP export of spans") from error
        for span in _spans(export):
            self.keep(span)

    def find(self, name: str) -> list[Span]:
        """The spans of a trace, by its id or that of its request; none if it is not known."""
        return list(self._traces.get(self._by_request.get(name, name), ()))

    def keep(self, span: Span) -> None:
        """One more."""
        spans = self._traces.setdefault(span.trace, deque())
        self._traces.move_to_end(span.trace)
        spans.append(span)
        self._count += 1
        request = span.attributes.get(REQUEST)
        if isinstance(request, str):
            self._by_request[request] = span.trace
        while self._count > self._spans_max and len(self._traces) > 1:
            self._forget(self._traces.popitem(last=False)[1])
        while self._count > self._spans_max:
            self._forget([spans.popleft()])

    def _forget(self, gone: Collection[Span]) -> None:
        self._count -= len(gone)
        for span in gone:
            self._by_request.pop(str(span.attributes.get(REQUEST)), None)


def _spans(export: ExportTraceServiceRequest) -> Iterator[Span]:
    for of_process in export.resource_spans:
        facts = _attributes(of_process.resource.attributes)
        service = str(facts.get("service.name", ""))
        for of_scope in of_process.scope_spans:
            yield from (_span(service, span) for span in of_scope.spans)


def _span(service: str, span: OtlpSpan) -> Span:
    return Span(
        service=service,
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
        events=tuple(event.name for event in span.events),
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind in ("string_value", "int_value", "double_value", "bool_value"):
        scalar: Value = getattr(value, kind)
        return scalar
    if kind == "array_value":
        return tuple(str(_value(each)) for each in value.array_value.values)
    return ""
