from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from bench.scrape import Scrape, parse


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def read(registry: CollectorRegistry) -> Scrape:
    return parse(generate_latest(registry).decode())


def test_counters_are_summed_over_labels_and_told_since_before(registry: CollectorRegistry) -> None:
    counter = Counter("things", "", ["kind"], registry=registry)
    counter.labels("a").inc(2)
    before = read(registry)
    counter.labels("a").inc(3)
    counter.labels("b").inc(4)
    after = read(registry)
    assert after.samples["things_total"] == 9
    assert after.since(before, "things_total") == 7
    assert after.since(before, "never_seen") == 0


def test_quantiles_are_of_what_came_since_before(registry: CollectorRegistry) -> None:
    histogram = Histogram("lag", "", buckets=(1.0, 2.0, 4.0), registry=registry)
    for _ in range(100):
        histogram.observe(0.5)
    before = read(registry)
    for _ in range(10):
        histogram.observe(3.0)
    after = read(registry)
    assert after.quantile(before, "lag", 0.5) == pytest.approx(3.0)
    assert after.quantile(before, "lag", 1.0) == pytest.approx(4.0)
    histogram.observe(100.0)
    assert read(registry).quantile(before, "lag", 1.0) == pytest.approx(4.0)


def test_nothing_counted_has_no_quantile(registry: CollectorRegistry) -> None:
    Histogram("lag", "", buckets=(1.0, 2.0), registry=registry)
    same = read(registry)
    assert same.quantile(same, "lag", 0.99) == 0.0
