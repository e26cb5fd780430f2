"""Stands in for Jaeger: takes OTLP/HTTP and answers `/api/services` and `/api/traces/{id}`."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from aiohttp import web
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES_MAX = 1000
EXPORT_BYTES_MAX = 16 << 20


class Traces:
    """The last traces, in the words of Jaeger's HTTP interface."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._services: set[str] = set()

    async def take(self, request: web.Request) -> web.Response:
        export = ExportTraceServiceRequest.FromString(await request.read())
        for group in export.resource_spans:
            service = _tags(group.resource.attributes).get("service.name", "")
            self._services.add(service)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self._keep(service, span)
        return web.Response(content_type="application/x-protobuf")

    def _keep(self, service: str, span: Any) -> None:
        parent = span.parent_span_id.hex()
        reference = {"refType": "CHILD_OF", "traceID": span.trace_id.hex(), "spanID": parent}
        kept = self._traces.setdefault(span.trace_id.hex(), [])
        kept.append(
            {
                "traceID": span.trace_id.hex(),
                "spanID": span.span_id.hex(),
                "operationName": span.name,
                "references": [reference] if parent else [],
                "startTime": span.start_time_unix_nano // 1000,
                "duration": (span.end_time_unix_nano - span.start_time_unix_nano) // 1000,
                "tags": [{"key": k, "value": v} for k, v in _tags(span.attributes).items()],
                "processID": service,
            }
        )
        while len(self._traces) > TRACES_MAX:
            self._traces.popitem(last=False)

    async def trace(self, request: web.Request) -> web.Response:
        trace_id = request.match_info["id"].rjust(32, "0")
        spans = self._traces.get(trace_id)
        if spans is None:
            return web.json_response({"errors": [{"code": 404}]}, status=404)
        names = {span["processID"] for span in spans}
        processes = {name: {"serviceName": name, "tags": []} for name in names}
        return web.json_response(
            {"data": [{"traceID": trace_id, "spans": spans, "processes": processes}]}
        )

    async def services(self, _: web.Request) -> web.Response:
        return web.json_response({"data": sorted(self._services)})


def _tags(attributes: Any) -> dict[str, Any]:
    plain = {a.key: MessageToDict(a.value, preserving_proto_field_name=True) for a in attributes}
    return {key: next(iter(value.values()), "") for key, value in plain.items()}


async def serve() -> None:
    traces = Traces()
    intake = web.Application(client_max_size=EXPORT_BYTES_MAX)
    intake.router.add_post("/v1/traces", traces.take)
    query = web.Application()
    query.router.add_get("/api/services", traces.services)
    query.router.add_get("/api/traces/{id}", traces.trace)
    for app, port in ((intake, 4318), (query, 16686)):
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, port=port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
