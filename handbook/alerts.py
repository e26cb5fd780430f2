"""Prometheus alerts as code; each has a runbook in docs/operations.md under its own name."""

from __future__ import annotations

import json
from dataclasses import dataclass

from handbook.catalogue import catalogue
from handbook.dashboards import Words

RUNBOOKS = "https://github.com/tokenplane/tokenplane/blob/main/docs/operations.md"


@dataclass(frozen=True)
class Alert:
    """Fires when `expression` has held for `for_`."""

    name: str
    expression: str
    for_: str
    severity: str
    summary: str

    @property
    def anchor(self) -> str:
        """Of its heading in the runbook."""
        return self.name.lower()


def alerts() -> list[Alert]:
    """All of them."""
    w = Words(catalogue())
    ttft, tpot = (
        f"tokenplane_gateway_time_{what}_seconds" for what in ("to_first_token", "per_output_token")
    )
    requests = "tokenplane_gateway_requests_total"
    bad = w.rate(requests, where='{outcome!~"completed|cancelled"}')
    blocks = (
        f"{w.total('tokenplane_agent_used_blocks')} / {w.total('tokenplane_agent_total_blocks')}"
    )
    lag = w.tail("tokenplane_router_kv_lag_seconds", 0.99)
    silent = w.rate("tokenplane_router_index_repairs_total", where='{reason="digest"}')
    failed = w.rate("tokenplane_transfer_failures_total")
    steps = w.rate("tokenplane_transfer_begun_total")
    return [
        Alert("TokenplaneFirstTokenLate", f"{w.tail(ttft, 0.95)} > 2", "5m", "page",
              "1 request in 20 waits more than 2 s for its first token"),
        Alert("TokenplaneTokensSlow", f"{w.tail(tpot, 0.95)} > 0.1", "5m", "page",
              "1 request in 20 gets less than 10 tokens a second"),
        Alert("TokenplaneRequestsFail", f"{bad} / {w.rate(requests)} > 0.02", "5m", "page",
              "more than 2 % of the requests fail or are turned away"),
        Alert("TokenplaneEngineUnhealthy", f"{w.name('tokenplane_agent_engine_healthy')} == 0",
              "2m", "ticket", "an engine does not answer its agent"),
        Alert("TokenplaneCacheFull", f"{blocks} > 0.95", "10m", "ticket",
              "running sequences take nearly all KV blocks of the fleet"),
        Alert("TokenplaneRequestsWait", f"{w.total('tokenplane_router_waiting_requests')} > 0",
              "5m", "ticket", "requests wait for a worker all the time: there are too few"),
        Alert("TokenplaneNoRouter", f"{w.rate('tokenplane_gateway_route_fallbacks_total')} > 0",
              "2m", "page", "gateways place requests by themselves: no router answers"),
        Alert("TokenplaneIndexLate", f"{lag} > 1", "5m", "ticket",
              "routers hear of cache events more than a second late"),
        Alert("TokenplaneIndexDrifts", f"{silent} > 0", "15m", "ticket",
              "indexes and caches come to differ without a gap being seen"),
        Alert("TokenplaneIndexUntrue", f"{w.total('tokenplane_router_untrue_workers', how='max')} > 0",
              "5m", "ticket", "a router cannot get the truth about a worker's cache"),
        Alert("TokenplaneRegistryStale", f"{w.total('tokenplane_registry_stale', how='max')} > 0",
              "2m", "page", "etcd is away; everybody serves by the last view"),
        Alert("TokenplaneTransfersFail", f"{failed} / {steps} > 0.05", "5m", "ticket",
              "more than 5 % of the movements of KV blocks fail"),
        Alert("TokenplaneLoopLate", f"{w.name('tokenplane_event_loop_lag_seconds')} > 0.25", "5m",
              "ticket", "a process is short of CPU, or something blocks its event loop"),
    ]  # fmt: skip


def rules() -> str:
    """alerts.yml. JSON is YAML, and needs no quoting of ours."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression.replace("$__rate_interval", "5m"),
            "for": alert.for_,
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "runbook_url": f"{RUNBOOKS}#{alert.anchor}",
            },
        }
        for alert in alerts()
    ]
    return json.dumps({"groups": [{"name": "tokenplane", "rules": rules}]}, indent=2) + "\n"
