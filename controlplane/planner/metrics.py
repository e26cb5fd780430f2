"""The planner's metrics: what each tick thought and did."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry, Counter, Gauge

from proto.scaling import PhasePlan, PlanTick

_GAUGES = {
    "workers": "Workers that are ready",
    "wanted": "Workers that there should be",
    "needed": "Workers that the load of now takes",
    "floor": "Workers that what is forecast takes",
    "rate": "Requests that arrive a second, those turned away among them",
    "predicted_rate": "Requests a second that are forecast",
    "prompt_tokens": "Mean prompt of a request",
    "output_tokens": "Mean answer of a request",
    "hit_rate": "Share of prompts found in caches",
    "accept_length": "Tokens that a step gives a sequence",
    "queued_prefill_tokens": "Prompt tokens that wait in engines",
    "running": "Requests that engines run",
    "waiting": "Requests that wait in engines",
    "ttft_ms": "Estimated time to first token of the tail, in milliseconds",
    "tpot_ms": "Estimated time per output token of the tail, in milliseconds",
    "attainment": "Share of the reachable requests estimated to meet their targets",
}


class PlannerMetrics:
    """One set a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ticks = Counter(
            "tokenplane_planner_ticks",
            "Decisions, by what was done and why",
            ["model", "role", "action", "reason"],
            registry=registry,
        )
        self.leads = Gauge(
            "tokenplane_planner_leader", "1 while this planner is in office", registry=registry
        )
        self.cost = Gauge(
            "tokenplane_planner_cost_per_hour", "Of all that is wanted", registry=registry
        )
        self.drift = Gauge(
            "tokenplane_planner_drift_workers",
            "Workers that are ready beyond what is wanted, outside of changes; below 0: missing",
            ["pool"],
            registry=registry,
        )
        self.unreadable = Counter(
            "tokenplane_planner_unreadable_messages",
            "Messages skipped because they could not be read",
            ["kind"],
            registry=registry,
        )
        self.refused = Counter(
            "tokenplane_planner_refused_writes",
            "Words that were not written because somebody else had the last one",
            registry=registry,
        )
        self._gauges = {
            name: Gauge(f"tokenplane_planner_{name}", text, ["model", "role"], registry=registry)
            for name, text in _GAUGES.items()
        }

    def tell(self, tick: PlanTick) -> None:
        """One tick."""
        self.cost.set(tick.cost_per_hour)
        for plan in tick.phases:
            self.ticks.labels(plan.model, plan.role, plan.action, plan.reason).inc()
            self._tell_phase(plan)

    def _tell_phase(self, plan: PhasePlan) -> None:
        for name, gauge in self._gauges.items():
            value = float(getattr(plan, name))
            gauge.labels(plan.model, plan.role).set(value if math.isfinite(value) else -1.0)
        for pool in plan.pools:
            self.drift.labels(pool).set(plan.drift.get(pool, 0))
