"""The router's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from controlplane.runtime.histogram import QuickHistogram

DECISION_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05)
LAG_BUCKETS_S = (
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25,
    1.0, 5.0,
)  # fmt: skip
WAITED_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SHARE_BUCKETS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class RouterMetrics:
    """One set a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "tokenplane_router_decisions",
            "Route requests answered, by policy and outcome (chosen, or why not)",
            ["policy", "outcome"],
            registry=registry,
        )
        self.decision_s = QuickHistogram(
            "tokenplane_router_decision_seconds",
            "Time to decide, without the bus",
            buckets=DECISION_BUCKETS_S,
            registry=registry,
        )
        self.waiting = Gauge(
            "tokenplane_router_waiting_requests",
            "Requests waiting for a worker that is not busy",
            registry=registry,
        )
        self.waited_s = QuickHistogram(
            "tokenplane_router_waited_seconds",
            "Time that requests waited for a worker before they got one or were refused",
            buckets=WAITED_BUCKETS_S,
            registry=registry,
        )
        self.predicted_hit = QuickHistogram(
            "tokenplane_router_predicted_hit_ratio",
            "Share of the prompt that the chosen worker was believed to hold",
            buckets=SHARE_BUCKETS,
            registry=registry,
        )
        self.unreadable = Counter(
            "tokenplane_router_unreadable_messages",
            "Messages skipped because they could not be read",
            ["kind"],
            registry=registry,
        )
        self.batches = Counter(
            "tokenplane_router_kv_batches", "KV batches applied to the index", registry=registry
        )
        self.lag_s = QuickHistogram(
            "tokenplane_router_kv_lag_seconds",
            "From an agent sealing a KV batch to its arrival here",
            buckets=LAG_BUCKETS_S,
            registry=registry,
        )
        self.repairs = Counter(
            "tokenplane_router_index_repairs",
            "Snapshots that replaced a worker's blocks, by what was wrong",
            ["reason"],
            registry=registry,
        )
        self.failed_repairs = Counter(
            "tokenplane_router_index_repair_failures",
            "Snapshots that could not be fetched, and are tried again",
            registry=registry,
        )
        self.untrue = Gauge(
            "tokenplane_router_untrue_workers",
            "Workers whose blocks are not known for sure; a snapshot is on its way",
            registry=registry,
        )
        self.replications = Counter(
            "tokenplane_router_replications",
            "Hot prefixes that the coordinator was asked to copy, by what came of it",
            ["outcome"],
            registry=registry,
        )
        self.dropped = Gauge(
            "tokenplane_router_dropped_messages",
            "Messages lost since the start because they came faster than they were read",
            ["kind"],
            registry=registry,
        )
        self.plugin_faults = Gauge(
            "tokenplane_router_plugin_faults",
            "How often a user's policy or filter has failed since the start",
            ["plugin"],
            registry=registry,
        )
        self.expired = Counter(
            "tokenplane_router_expired_bookings",
            "Bookings dropped because nobody spoke of them any more",
            registry=registry,
        )
        self.blocks = Gauge(
            "tokenplane_router_index_blocks", "Different blocks in the index", registry=registry
        )
        self.in_flight = Gauge(
            "tokenplane_router_bookings", "Requests booked and not ended", registry=registry
        )
