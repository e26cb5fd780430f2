"""Spans as they are read back: from a cluster's own store, or from Jaeger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

Value = str | int | float | bool | tuple[str, ...]


class Span(msgspec.Struct, frozen=True):
    """One span. Ids in hex; `parent` is empty for a root."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    start_ns: int
    end_ns: int
    failed: bool = False
    attributes: dict[str, Value] = {}
    events: tuple[str, ...] = ()

    @property
    def ms(self) -> float:
        """How long it took."""
        return (self.end_ns - self.start_ns) / 1e6


class Node(NamedTuple):
    """A span and those below it, by their start."""

    span: Span
    children: list[Node]


def tree(spans: Iterable[Span]) -> list[Node]:
    """The roots of a trace: spans whose parent is not among them, by their start."""
    nodes = {span.id: Node(span, []) for span in sorted(spans, key=lambda s: (s.start_ns, s.id))}
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(node.span.parent)
        (parent.children if parent else roots).append(node)
    return roots


def walk(nodes: Iterable[Node], depth: int = 0) -> Iterator[tuple[int, Span]]:
    """Every span with its depth, parents first."""
    for node in nodes:
        yield depth, node.span
        yield from walk(node.children, depth + 1)


def from_jaeger(answer: Mapping[str, object]) -> list[Span]:
    """Spans of an answer of Jaeger's query API."""
    found = msgspec.convert(answer, _Answer, strict=False)
    return [_jaeger_span(each, trace.processes) for trace in found.data for each in trace.spans]


class _Tag(msgspec.Struct):
    key: str
    value: object = None


class _Reference(msgspec.Struct, rename="camel"):
    ref_type: str
    span_i_d: str = msgspec.field(name="spanID")


class _JaegerSpan(msgspec.Struct, rename="camel"):
    trace: str = msgspec.field(name="traceID")
    id: str = msgspec.field(name="spanID")
    operation_name: str
    start_time: int
    duration: int
    process: str = msgspec.field(name="processID")
    references: list[_Reference] = []
    tags: list[_Tag] = []


class _Process(msgspec.Struct, rename="camel"):
    service_name: str


class _Trace(msgspec.Struct):
    spans: list[_JaegerSpan]
    processes: dict[str, _Process]


class _Answer(msgspec.Struct):
    data: list[_Trace] = []


def _jaeger_span(span: _JaegerSpan, processes: Mapping[str, _Process]) -> Span:
    parents = [r.span_i_d for r in span.references if r.ref_type == "CHILD_OF"]
    tags = {t.key: t.value for t in span.tags if isinstance(t.value, str | int | float | bool)}
    failed = tags.pop("otel.status_code", "") == "ERROR"
    return Span(
        service=processes[span.process].service_name,
        name=span.operation_name,
        trace=span.trace,
        id=span.id,
        parent=parents[0] if parents else "",
        start_ns=span.start_time * 1000,
        end_ns=(span.start_time + span.duration) * 1000,
        failed=failed,
        attributes=dict(tags),
    )
