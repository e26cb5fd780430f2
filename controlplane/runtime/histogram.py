"""A histogram for what is observed with every decision or token.

It takes no lock, as only the event loop writes it, and costs a fifth of the library's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Counts:
    """What was observed under one set of labels."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.of_buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one more."""
        self.of_buckets[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count each of them."""
        bounds, of_buckets = self._bounds, self.of_buckets
        for value in values:
            of_buckets[bisect_left(bounds, value)] += 1
            self.sum += value


class QuickHistogram(Collector):
    """With `labels` as the library's; without any it is observed itself."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self.name, self.documentation, self.labelnames = name, documentation, tuple(labelnames)
        self._bounds = tuple(buckets)
        self._names = [*map(floatToGoString, buckets), "+Inf"]
        self._counts: dict[tuple[str, ...], Counts] = {}
        if not labelnames:
            self.observe = self.labels().observe
        registry.register(self)

    def labels(self, *values: str) -> Counts:
        """What is counted under these, one for each name; there from now on."""
        counts = self._counts.get(values)
        if counts is None:
            assert len(values) == len(self.labelnames), f"{self.name} has {self.labelnames}"
            counts = self._counts[values] = Counts(self._bounds)
        return counts

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """For the library."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.labelnames)
        for values, counts in list(self._counts.items()):
            buckets = zip(self._names, accumulate(counts.of_buckets), strict=True)
            family.add_metric(values, list(buckets), counts.sum)
        yield family
