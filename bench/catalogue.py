"""Which benchmarks there are. Each is a module of this package with one idea."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

from bench.options import Options
from bench.rows import Bar, Row

NAMES = ("hash", "match", "apply", "memory", "decision", "fleet", "gateway", "transfer")


class Benchmark(Protocol):
    """What such a module looks like; the first line of its docstring is its summary."""

    __doc__: str | None
    BARS: Sequence[Bar]

    def run(self, options: Options) -> Iterator[Row]: ...


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name, one of `NAMES`."""
    return cast(Benchmark, importlib.import_module(f"bench.{name}"))


def summary(name: str) -> str:
    """What a benchmark measures, on one line."""
    first, *_ = (benchmark(name).__doc__ or "").splitlines()
    return first.removeprefix(f"{name}: ").rstrip(".")
