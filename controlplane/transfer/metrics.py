"""The coordinator's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip


class TransferMetrics:
    """One set a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"tokenplane_transfer_{name}", what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(f"tokenplane_transfer_{name}", what, labels, registry=registry)

        self.begun = counter("begun", "Requests asked about, by what was decided", "decision")
        self.fallbacks = counter(
            "fallbacks", "Remote prefill was wanted and could not be had, by reason", "reason"
        )
        self.moves = counter(
            "moves", "Movements of cached prefixes that were asked for, by what came of it",
            "purpose", "outcome",
        )  # fmt: skip
        self.steps = counter("steps", "Steps of tickets", "step")
        self.failures = counter(
            "failures", "Tickets that failed, expired or were cancelled, by state and cause",
            "ended", "cause",
        )  # fmt: skip
        self.lease_expiries = counter("lease_expiries", "Staged blocks that nobody read in time")
        self.denied = counter("denied", "Reports that were refused, by reason", "reason")
        self.duties = counter(
            "duties", "Commands to agents, by verb and outcome", "verb", "outcome"
        )
        self.conflicts = counter("conflicts", "Writes that another replica was faster with")
        self.unreadable = counter("unreadable", "Tickets read that this build cannot make sense of")
        self.bytes = counter("bytes", "KV bytes that have landed", "link")
        self.seconds = Histogram(
            "tokenplane_transfer_seconds",
            "From the start of a transfer to the first token after it",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.post_seconds = Histogram(
            "tokenplane_transfer_post_seconds",
            "From blocks that are staged to the start of their transfer",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.tickets = gauge("tickets", "Tickets by state", "state")
        self.unsettled = gauge(
            "unsettled", "Tickets that have not ended, or owe somebody something"
        )
        self.in_flight = gauge("in_flight", "Transfers under way")
        self.reserved = gauge("reserved", "Decode places that are kept")
        self.staged_bytes = gauge("staged_bytes", "Bytes held for who has not collected them yet")
        self.quarantined = gauge("quarantined", "Tickets whose blocks may still be written to")
        self.link_bytes_per_s = gauge("link_bytes_per_second", "Measured bandwidth", "link")
