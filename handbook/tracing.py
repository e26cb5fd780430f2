"""docs/tracing.md: spans and attributes from their one table."""

from __future__ import annotations

from controlplane.runtime.spans import ATTRIBUTES, SPANS

HEAD = """\
# Traces

One trace covers a request: gateway, router, agents, and the coordinator where KV blocks move,
across HTTP and NATS, with every retry and migration. Written by `make docs` from
`controlplane/runtime/spans.py`; `tests/cluster/test_traces.py` sends requests through a live cluster
and holds the tree of spans to it.

    tokenplane trace 9007a9818da91cc0aec102f011f0f020      # the x-request-id of an answer
    tokenplane trace 0af7651916cd43dd8448eb211c80319c --jaeger http://127.0.0.1:16686

![One request's trace in the console: prefilled by one engine, decoded by another](images/trace.png)

Every process sends spans by OTLP over HTTP to `telemetry.otlp_endpoint` (or
`OTEL_EXPORTER_OTLP_ENDPOINT`); without one nothing is recorded, and a caller's context passes
through all the same. `tokenplane up` keeps the last 50,000 spans in its console
(`console.spans_max`), in memory, unless `--otlp` sends them elsewhere: `tokenplane trace` reads
from there. Real deployments want a collector.

## Context

W3C `traceparent` and `tracestate` come in with the client's request, go to routers, coordinator
and agents in the headers of NATS messages, and to engines in the headers of HTTP requests. A
request whose client sends a context continues the client's trace, and keeps the client's choice on
whether it is recorded. A ticket of a KV transfer carries its request's context, so that what the
coordinator does later by itself is in the same trace.

`telemetry.sample_ratio` is the share of traces begun here that are recorded, decided once at the
gateway; 0.01 is plenty for a busy cluster. KV events and load reports are never traced: there are
thousands a second, and their lag and losses are [metrics](metrics.md). Every line of a log that
belongs to a span names it (`trace_id`), and every request record too.
"""

CONVENTIONS = """\
Those of OpenTelemetry's [GenAI conventions](https://opentelemetry.io/docs/specs/semconv/gen-ai/)
where it has them, else ours.
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{span.name}` | {span.service} | {_parent(span.parent)} | {span.meaning} |"
        f" {', '.join(f'`{name}`' for name in span.attributes)} |"
        for span in SPANS
    ]
    attributes = [f"| `{name}` | {meaning} |" for name, meaning in ATTRIBUTES.items()]
    return "\n".join(
        [
            HEAD,
            "## Spans\n",
            "| span | service | below | what it is | attributes |\n|---|---|---|---|---|",
            *rows,
            "\n## Attributes\n",
            CONVENTIONS,
            "| attribute | what it is |\n|---|---|",
            *attributes,
            "",
        ]
    )


def _parent(name: str) -> str:
    parts = name.split(" or ")
    known = {span.name for span in SPANS}
    return " or ".join(f"`{part}`" if part in known else part for part in parts)
