"""A process's metrics, read from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from proto.wire.ports import Http


@dataclass(frozen=True)
class Scrape:
    """All samples of one moment: by name, summed over labels; of buckets, by upper bound."""

    samples: Mapping[str, float]
    buckets: Mapping[str, Mapping[float, float]]

    def since(self, before: Scrape, name: str) -> float:
        """How much a counter has grown."""
        return self.samples.get(name, 0.0) - before.samples.get(name, 0.0)

    def quantile(self, before: Scrape, name: str, share: float) -> float:
        """Of what a histogram has counted since `before`: linear within a bucket, and the last
        bound for what lies above it. 0 where nothing was counted."""
        then = before.buckets.get(name, {})
        counted = sorted(
            (bound, n - then.get(bound, 0.0)) for bound, n in self.buckets[name].items()
        )
        wanted, lower, below = share * counted[-1][1], 0.0, 0.0
        for bound, upto in counted:
            if upto >= wanted and upto > below:
                if bound == float("inf"):
                    return lower
                return lower + (bound - lower) * (wanted - below) / (upto - below)
            lower, below = bound, upto
        return 0.0


async def scrape(http: Http, url: str) -> Scrape:
    """Read `/metrics`. Raises `HttpError`."""
    async with http.exchange("GET", url) as answer:
        return parse((await answer.read()).decode())


def parse(text: str) -> Scrape:
    """The text format of Prometheus."""
    samples: dict[str, float] = {}
    buckets: dict[str, dict[float, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                of_name = buckets.setdefault(family.name, {})
                bound = float(sample.labels["le"])
                of_name[bound] = of_name.get(bound, 0.0) + sample.value
            else:
                samples[sample.name] = samples.get(sample.name, 0.0) + sample.value
    return Scrape(samples, buckets)
