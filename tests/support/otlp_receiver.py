"""A small real collector: OTLP/HTTP with protobuf on a free loopback port; keeps every span."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anyio.to_thread
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Value = str | int | float | bool | None


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it arrived; ids in hex, `parent_id` empty for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]


Condition = Callable[[Sequence[ReceivedSpan]], bool]


class OtlpReceiver:
    """Collects spans from any number of processes."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[ReceivedSpan]:
        """What has arrived by now."""
        with self._arrived:
            return list(self._spans)

    def wait_for(self, condition: Condition, timeout_s: float = 10.0) -> list[ReceivedSpan]:
        """Block until `condition(spans)` holds; fails the test, naming what came, if it never
        does. Asynchronous tests use `until`."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: condition(self._spans), timeout_s):
                names = sorted(f"{s.service}: {s.name}" for s in self._spans)
                raise AssertionError(f"the spans never came; there are {names}")
            return list(self._spans)

    async def until(self, condition: Condition, timeout_s: float = 10.0) -> list[ReceivedSpan]:
        """`wait_for`, without blocking the event loop."""
        return await anyio.to_thread.run_sync(self.wait_for, condition, timeout_s)

    def take(self, request: ExportTraceServiceRequest) -> None:
        """Keep the spans of one export."""
        with self._arrived:
            self._spans.extend(_spans(request))
            self._arrived.notify_all()

    def serve(self) -> None:
        """Until `close`."""
        self._server.serve_forever(poll_interval=0.02)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    """A receiver that listens while the context is open."""
    receiver = OtlpReceiver()
    thread = threading.Thread(target=receiver.serve, name="otlp-receiver", daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, receiver: OtlpReceiver, *args: object) -> None:
        self._receiver = receiver
        super().__init__(*args)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            self._receiver.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the test says what matters."""


def _spans(request: ExportTraceServiceRequest) -> Iterator[ReceivedSpan]:
    for resource_spans in request.resource_spans:
        service = str(_attributes(resource_spans.resource.attributes).get("service.name", ""))
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                yield ReceivedSpan(
                    service=service,
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    kind=span.kind,
                    status=span.status.code,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    attributes=_attributes(span.attributes),
                )


def _attributes(pairs: Sequence[KeyValue]) -> dict[str, Value]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind in {"string_value", "int_value", "double_value", "bool_value"}:
        scalar: Value = getattr(value, kind)
        return scalar
    return str(value) if kind else None
