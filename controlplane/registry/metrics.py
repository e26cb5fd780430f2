"""The registry's numbers, read from the view at each scrape."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controlplane.registry.view import RegistryView


class RegistryMetrics(Collector):
    """Gauges of the view, and a counter of answered questions."""

    def __init__(self, view: RegistryView, metrics: CollectorRegistry) -> None:
        self._view = view
        self.requests = Counter(
            "tokenplane_registry_requests",
            "Questions to the registry, by outcome (answered, refused).",
            ["outcome"],
            registry=metrics,
        )
        for outcome in ("answered", "refused"):
            self.requests.labels(outcome)  # a series that is not there yet looks like no data
        metrics.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What Prometheus asks for; a state or model that is gone leaves no series behind."""
        workers = GaugeMetricFamily(
            "tokenplane_registry_workers",
            "Registered workers by model, role and state.",
            labels=["model", "role", "state"],
        )
        tally = Tally((w.model, w.role, w.state) for w in self._view.workers.values())
        for labels, count in tally.items():
            workers.add_metric(labels, count)
        yield workers
        yield GaugeMetricFamily(
            "tokenplane_registry_models", "Known models.", value=len(self._view.models)
        )
        yield GaugeMetricFamily(
            "tokenplane_registry_bad_records",
            "Entries of the store that are skipped because they cannot be used.",
            value=len(self._view.bad_records),
        )
        yield GaugeMetricFamily(
            "tokenplane_registry_stale",
            "1 while the store is away and the last view is served.",
            value=float(self._view.stale_since is not None),
        )
