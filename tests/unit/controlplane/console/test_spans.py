"""The small store of spans: takes real exports, finds by request and by trace, and is bounded."""

from __future__ import annotations

import urllib.error
import urllib.request

import anyio
import anyio.to_thread
import msgspec
import pytest

from controlplane.console.settings import ConsoleSettings
from controlplane.console.spans import NotSpans, SpanStore
from controlplane.runtime.traces import Span, from_jaeger, tree, walk
from controlplane.runtime.tracing import make_provider
from tests.unit.controlplane.console.stage import on_stage

STORE = ConsoleSettings(port=0, spans_max=100)


@pytest.mark.anyio
async def test_what_a_process_exports_can_be_read_back_as_a_tree() -> None:
    def export_and_ask(url: str) -> bytes:
        provider = make_provider("gateway", url, 1.0)
        tracer = provider.get_tracer("test")
        with tracer.start_as_current_span("gateway.request") as span:
            span.set_attribute("tokenplane.request", "abc")
            with tracer.start_as_current_span("gateway.route") as below:
                below.add_event("asked again")
        provider.shutdown()
        with urllib.request.urlopen(f"{url}/api/trace/abc", timeout=10) as response:
            answer: bytes = response.read()
        return answer

    async with on_stage(1, STORE) as (console, _):
        url = f"http://127.0.0.1:{console.port}"
        found = await anyio.to_thread.run_sync(export_and_ask, url)
    spans = msgspec.json.decode(found, type=list[Span])
    assert [(depth, s.name, s.service) for depth, s in walk(tree(spans))] == [
        (0, "gateway.request", "gateway"),
        (1, "gateway.route", "gateway"),
    ]
    assert [s.events for s in spans if s.name == "gateway.route"] == [("asked again",)]


@pytest.mark.anyio
async def test_a_console_that_keeps_no_spans_takes_none() -> None:
    def post(url: str) -> int:
        request = urllib.request.Request(f"{url}/v1/traces", b"", method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        with refused.value:
            return refused.value.code

    async with on_stage(1) as (console, _):
        code = await anyio.to_thread.run_sync(post, f"http://127.0.0.1:{console.port}")
    assert code == 404


def test_what_is_no_export_is_refused() -> None:
    with pytest.raises(NotSpans):
        SpanStore(10).take(b"\xff\xff\xff")


def span(trace: str, id: str, parent: str = "", **attributes: str) -> Span:
    return Span("s", id, trace, id, parent, 0, 1, attributes=dict(attributes))


def test_the_trace_spoken_of_longest_ago_goes_first_and_its_request_with_it() -> None:
    store = SpanStore(4)
    for n in range(3):
        store.keep(span(f"t{n}", "a", **{"tokenplane.request": f"r{n}"}))
    store.keep(span("t0", "b"))
    store.keep(span("t3", "a"))
    assert store.find("r1") == store.find("t1") == []
    assert [s.id for s in store.find("r0")] == ["a", "b"]
    assert len(store) == 4


def test_a_client_that_gives_all_its_requests_one_trace_does_not_fill_the_store() -> None:
    store = SpanStore(4)
    store.keep(span("other", "a"))
    for n in range(9):
        store.keep(span("t", f"{n}", **{"tokenplane.request": f"r{n}"}))
    assert len(store) == 4
    assert [s.id for s in store.find("r8")] == ["5", "6", "7", "8"]
    assert store.find("r4") == store.find("other") == []


def test_spans_whose_parent_is_elsewhere_are_roots_by_their_start() -> None:
    spans = [
        Span("s", "late", "t", "1", "gone", 5, 6),
        Span("s", "early", "t", "2", "", 1, 9),
        Span("s", "child", "t", "3", "2", 2, 3),
    ]
    assert [(d, s.name) for d, s in walk(tree(spans))] == [(0, "early"), (1, "child"), (0, "late")]


def test_jaegers_answer_is_read() -> None:
    answer: dict[str, object] = {
        "data": [
            {
                "traceID": "t",
                "processes": {"p1": {"serviceName": "gateway"}},
                "spans": [
                    {
                        "traceID": "t", "spanID": "1", "operationName": "gateway.request",
                        "startTime": 1000, "duration": 500, "processID": "p1", "references": [],
                        "tags": [
                            {"key": "tokenplane.request", "type": "string", "value": "abc"},
                            {"key": "otel.status_code", "type": "string", "value": "ERROR"},
                        ],
                    },
                    {
                        "traceID": "t", "spanID": "2", "operationName": "gateway.route",
                        "startTime": 1100, "duration": 10, "processID": "p1", "tags": [],
                        "references": [{"refType": "CHILD_OF", "traceID": "t", "spanID": "1"}],
                    },
                ],
            }
        ]
    }  # fmt: skip
    (root,) = tree(from_jaeger(answer))
    assert (root.span.service, root.span.ms, root.span.failed) == ("gateway", 0.5, True)
    assert root.span.attributes == {"tokenplane.request": "abc"}
    assert [child.span.name for child in root.children] == ["gateway.route"]
