"""The quick histogram says what the library's own would say."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from controlplane.runtime.histogram import QuickHistogram

NAME, HELP, BUCKETS = "seconds", "how long", (0.1, 0.5, 1.0)
observations = st.lists(st.sampled_from((0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 4.0)))


def told(registry: CollectorRegistry) -> list[str]:
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(observations, observations)
def test_its_page_is_that_of_the_librarys(ones: list[float], others: list[float]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    quick = QuickHistogram(NAME, HELP, ["model"], buckets=BUCKETS, registry=ours)
    slow = Histogram(NAME, HELP, ["model"], buckets=BUCKETS, registry=theirs)
    quick.labels("a").observe_all(ones)
    one = slow.labels("a")
    for value in ones:
        one.observe(value)
    for value in others:
        quick.labels('b"').observe(value)
        slow.labels('b"').observe(value)
    assert told(ours) == told(theirs)


def test_without_labels_it_is_there_from_the_start() -> None:
    registry = CollectorRegistry()
    quick = QuickHistogram(NAME, HELP, buckets=BUCKETS, registry=registry)
    assert registry.get_sample_value("seconds_count") == 0
    quick.observe(0.3)
    assert registry.get_sample_value("seconds_bucket", {"le": "0.5"}) == 1
