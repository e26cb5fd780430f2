"""Grafana dashboards as code: panels of queries whose metrics are looked up in the catalogue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from handbook.catalogue import Catalogue, catalogue

DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
COLUMNS, HEIGHT = 24, 8
SCHEMA_VERSION = 39


@dataclass(frozen=True)
class Query:
    """A line of a panel."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One picture; `unit` as Grafana names it."""

    title: str
    unit: str
    queries: Sequence[Query]
    about: str = ""
    width: int = 8


class Words:
    """Expressions over metrics that exist."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.name = catalogue.name

    def rate(self, series: str, *by: str, where: str = "") -> str:
        """Per second, summed by labels."""
        selector = f"{self.name(series, *by)}{where}"
        return f"sum{_by(by)} (rate({selector}[$__rate_interval]))"

    def total(self, series: str, *by: str, how: str = "sum") -> str:
        """A gauge over all processes."""
        return f"{how}{_by(by)} ({self.name(series, *by)})"

    def tail(self, histogram: str, q: float, *by: str) -> str:
        """A quantile."""
        name = self.name(f"{histogram}_bucket", *by)
        return (
            f"histogram_quantile({q}, sum by ({', '.join(('le', *by))})"
            f" (rate({name}[$__rate_interval])))"
        )

    def tails(self, histogram: str) -> list[Query]:
        """Median and tails."""
        return [Query(self.tail(histogram, q), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)]


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def fleet() -> str:
    """What users feel, and what the fleet is doing."""
    w = Words(catalogue())
    gateway, agent = "tokenplane_gateway", "tokenplane_agent"
    tokens = f"{gateway}_tokens_total"

    def of_kind(kind: str) -> str:
        return w.rate(tokens, where=f'{{kind="{kind}"}}')

    found, looked_for = (w.rate(f"{agent}_{kind}_prompt_tokens") for kind in ("cached", "queried"))
    return _dashboard("fleet", "Tokenplane: fleet", [
        Panel("Time to first token", "s", w.tails(f"{gateway}_time_to_first_token_seconds")),
        Panel("Time per output token", "s", w.tails(f"{gateway}_time_per_output_token_seconds")),
        Panel("Whole request", "s", w.tails(f"{gateway}_request_seconds")),
        Panel("Requests by outcome", "reqps", [
            Query(w.rate(f"{gateway}_requests_total", "outcome"), "{{outcome}}"),
        ]),
        Panel("In flight and waiting", "short", [
            Query(w.total(f"{gateway}_requests_in_flight"), "in gateways"),
            Query(w.total("tokenplane_router_waiting_requests"), "waiting in routers"),
            Query(w.total(f"{agent}_running_requests"), "running in engines"),
            Query(w.total(f"{agent}_waiting_requests"), "waiting in engines"),
        ]),
        Panel("Tokens", "short", [Query(w.rate(tokens, "kind"), "{{kind}}")], "Per second."),
        Panel("Prompt found in cache", "percentunit", [
            Query(f"{found} / {looked_for}", "as engines count"),
            Query(f"{of_kind('cached')} / {of_kind('told')}", "as engines tell in answers"),
            Query(f"{of_kind('predicted')} / {of_kind('prompt')}", "as routers predicted"),
        ]),
        Panel("KV blocks", "percentunit", [
            Query(_share(w, "used_blocks"), "used"), Query(_share(w, "live_blocks"), "cached"),
        ]),
        Panel("Workers by state", "short", [
            Query(_workers(w), "{{state}}"),
        ]),
        Panel("Retries and migrations", "reqps", [
            Query(f"{w.rate(f'{gateway}_retries_total', 'reason')} > 0", "retry: {{reason}}"),
            Query(f"{w.rate(f'{gateway}_migrations_total', 'reason')} > 0", "migration: {{reason}}"),
            Query(w.rate(f"{gateway}_retries_total"), "all retries"),
            Query(w.rate(f"{gateway}_migrations_total"), "all migrations"),
        ]),
        Panel("Engines", "short", [
            Query(w.rate(f"{agent}_preemptions"), "preemptions/s"),
            Query(f"count ({w.name(f'{agent}_engine_healthy')} == 0) or vector(0)", "unhealthy"),
        ]),
        Panel("Cost", "currencyUSD", [
            Query(f"3600 * {w.rate(f'{agent}_cost_dollars_total', 'hardware')}", "{{hardware}}"),
        ], "An hour, of accelerators whose price is known."),
    ])  # fmt: skip


def _share(w: Words, blocks: str) -> str:
    total = w.total("tokenplane_agent_total_blocks")
    return f"{w.total(f'tokenplane_agent_{blocks}')} / {total}"


def _workers(w: Words) -> str:
    """Every registry counts all of them."""
    each = w.total("tokenplane_registry_workers", "model", "role", "state", how="max")
    return f"sum by (state) ({each})"


def control() -> str:
    """How well the control plane itself does."""
    w = Words(catalogue())
    router, transfer = "tokenplane_router", "tokenplane_transfer"
    planner = "tokenplane_planner"
    return _dashboard("control", "Tokenplane: control plane", [
        Panel("Decisions by outcome", "reqps", [
            Query(w.rate(f"{router}_decisions_total", "outcome"), "{{outcome}}"),
        ]),
        Panel("Time to decide", "s", w.tails(f"{router}_decision_seconds")),
        Panel("Time to ask a router", "s", w.tails("tokenplane_gateway_route_seconds")),
        Panel("Waited for a worker", "s", w.tails(f"{router}_waited_seconds")),
        Panel("KV events: age when heard", "s", w.tails(f"{router}_kv_lag_seconds")),
        Panel("Index repairs", "short", [
            Query(w.rate(f"{router}_index_repairs_total", "reason"), "{{reason}}"),
            Query(w.rate(f"{router}_index_repair_failures_total"), "failed"),
            Query(w.total(f"{router}_untrue_workers", how="max"), "workers not known for sure"),
        ], "Per second, by what was wrong."),
        Panel("Index", "short", [
            Query(w.total(f"{router}_index_blocks", how="max"), "blocks"),
        ]),
        Panel("Event loop lag", "s", [
            Query(w.total("tokenplane_event_loop_lag_seconds", how="max"), "worst of all"),
            Query(f"max by (instance) ({w.name('tokenplane_event_loop_lag_seconds')})", "{{instance}}"),
        ]),
        Panel("Placed without a router", "reqps", [
            Query(w.rate("tokenplane_gateway_route_fallbacks_total", "reason"), "{{reason}}"),
        ]),
        Panel("Workers wanted and there", "short", [
            Query(w.total(f"{planner}_wanted", "model", "role", how="max"), "{{model}} {{role}} wanted"),
            Query(w.total(f"{planner}_workers", "model", "role", how="max"), "{{model}} {{role}} ready"),
            Query(w.total(f"{planner}_floor", "model", "role", how="max"), "{{model}} {{role}} forecast"),
        ]),
        Panel("Planner: decisions by reason", "short", [
            Query(w.rate(f"{planner}_ticks_total", "action", "reason"), "{{action}}: {{reason}}"),
        ]),
        Panel("Planner: estimates", "ms", [
            Query(w.total(f"{planner}_ttft_ms", "model", "role", how="max"), "{{model}} {{role}} TTFT"),
            Query(w.total(f"{planner}_tpot_ms", "model", "role", how="max"), "{{model}} {{role}} TPOT"),
        ]),
        Panel("Transfers by state", "short", [
            Query(w.total(f"{transfer}_tickets", "state"), "{{state}}"),
        ]),
        Panel("Transfers that failed", "reqps", [
            Query(w.rate(f"{transfer}_failures_total", "ended", "cause"), "{{ended}}: {{cause}}"),
        ]),
        Panel("KV bytes moved", "Bps", [
            Query(w.rate(f"{transfer}_bytes_total", "link"), "{{link}}"),
        ]),
        Panel("Transfer time", "s", w.tails(f"{transfer}_seconds")),
        Panel("Registry", "short", [
            Query(w.total("tokenplane_registry_stale", how="max"), "stale"),
            Query(w.total("tokenplane_registry_bad_records", how="max"), "bad records"),
        ]),
        Panel("Messages lost or unreadable", "short", [
            Query(w.total(f"{router}_dropped_messages", "kind"), "dropped: {{kind}}"),
            Query(w.rate(f"{router}_unreadable_messages_total", "kind"), "unreadable: {{kind}}"),
        ]),
    ])  # fmt: skip


def _dashboard(uid: str, title: str, panels: Sequence[Panel]) -> str:
    placed: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > COLUMNS:
            x, y = 0, y + HEIGHT
        placed.append(_panel(number, panel, x, y))
        x += panel.width
    whole = {
        "uid": f"tokenplane-{uid}",
        "title": title,
        "tags": ["tokenplane"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "panels": placed,
    }
    return json.dumps(whole, indent=2) + "\n"


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": DATASOURCE,
            "expr": query.expression,
            "legendFormat": query.legend,
        }
        for i, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"lineWidth": 1, "fillOpacity": 8, "showPoints": "never"},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": targets,
    }
