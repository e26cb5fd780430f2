"""docs/metrics.md: the catalogue as tables."""

from __future__ import annotations

from handbook.catalogue import SERVICES, Metric, catalogue

HEAD = """\
# Metrics

Every process serves these at `/metrics` on its admin port. Written by `make docs` from the code;
a test holds this page, the Grafana dashboards (`deploy/observability/grafana/dashboards`) and the
alerts (`deploy/observability/prometheus/alerts.yml`) to it. Beside them stand the Python client's
own `process_...` and `python_gc_...`.

What is looked for first:

| question | metric |
|---|---|
| how long until the first token | `tokenplane_gateway_time_to_first_token_seconds` |
| how fast then | `tokenplane_gateway_time_per_output_token_seconds` |
| how long in all, how long prompts and answers are | `tokenplane_gateway_request_seconds`, `..._prompt_tokens`, `..._output_tokens` |
| what is in flight, what waits in routers, what waits in engines | `tokenplane_gateway_requests_in_flight`, `tokenplane_router_waiting_requests`, `tokenplane_agent_waiting_requests` |
| what failed, was cancelled, was turned away | `tokenplane_gateway_requests_total` by `outcome`, `tokenplane_router_decisions_total` by `outcome` |
| retries and migrations | `tokenplane_gateway_retries_total`, `tokenplane_gateway_migrations_total` |
| KV blocks used, cached, there | `tokenplane_agent_used_blocks`, `tokenplane_agent_live_blocks`, `tokenplane_agent_total_blocks` |
| how late and how true the index is | `tokenplane_router_kv_lag_seconds`, `tokenplane_router_index_repairs_total` by `reason`, `tokenplane_router_untrue_workers` |
| movements of KV by state, and why one failed | `tokenplane_transfer_tickets` by `state`, `tokenplane_transfer_failures_total` by `ended` and `cause` |
| whether a process is short of CPU | `tokenplane_event_loop_lag_seconds` |

## Caches, one by one

One hit rate for all caches would say nothing. Each has its own:

| cache | hits | of |
|---|---|---|
| an engine's prefix cache, as the engine counts | `tokenplane_agent_cached_prompt_tokens` | `tokenplane_agent_queried_prompt_tokens` |
| the same, as engines tell in their answers | `tokenplane_gateway_tokens_total{kind="cached"}` | `tokenplane_gateway_tokens_total{kind="told"}` |
| the same, as the router predicted it | `tokenplane_gateway_tokens_total{kind="predicted"}` | `tokenplane_gateway_tokens_total{kind="prompt"}` |

There is no semantic cache: similar questions are never given each other's answers. Answers that are
repeated by their idempotency key do not reach the router, and count in none of these.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for service in SERVICES:
        rows = [_row(m) for m in catalogue().metrics if m.service == service]
        title = service[0].upper() + service[1:]
        table = "| metric | kind | labels | what it is |\n|---|---|---|---|\n"
        parts.append(f"## {title}\n\n{table}{''.join(rows)}")
    return "\n".join(parts)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.meaning} |\n"
