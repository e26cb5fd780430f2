"""The curves of the page: what ended in a sliding window, one point a beat, kept for a while."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from controlplane.console.frames import Point
from proto.progress import CANCELLED, COMPLETED
from proto.records import RequestRecord

SAMPLES_MAX = 20_000
"""Requests in the window: at more than so many the oldest leave early."""


class _Sample(NamedTuple):
    at_s: float
    record: RequestRecord


class Window:
    """Requests that ended within the last `window_s` seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[_Sample] = deque(maxlen=SAMPLES_MAX)

    def add(self, record: RequestRecord, now_s: float) -> None:
        """A request has ended."""
        self._samples.append(_Sample(now_s, record))

    def point(self, now_s: float) -> Point:
        """Rates and tails of what is in the window."""
        while self._samples and self._samples[0].at_s < now_s - self._window_s:
            self._samples.popleft()
        records = [sample.record for sample in self._samples]
        placed = [r for r in records if r.worker is not None]
        return {
            "requests_per_s": len(records) / self._window_s,
            "failed_per_s": sum(map(_failed, records)) / self._window_s,
            "prompt_tokens_per_s": sum(r.prompt_tokens for r in records) / self._window_s,
            "output_tokens_per_s": sum(r.output_tokens for r in records) / self._window_s,
            "predicted_hit_rate": _share((r.predicted_cached_tokens for r in placed), placed),
            **_tails("ttft", [r.ttft_ms for r in records if r.ttft_ms is not None]),
            **_tails("tpot", [r.tpot_ms for r in records if r.tpot_ms is not None]),
        }


class History:
    """The last points, as one list a curve."""

    def __init__(self, points_max: int) -> None:
        self._points: deque[Point] = deque(maxlen=points_max)

    def add(self, point: Point) -> None:
        """The newest."""
        self._points.append(point)

    def curves(self) -> dict[str, list[float | None]]:
        """All of them, oldest first."""
        names = self._points[-1] if self._points else ()
        return {name: [point.get(name) for point in self._points] for name in names}


def _failed(record: RequestRecord) -> bool:
    return record.outcome not in (COMPLETED, CANCELLED)


def _share(parts: Iterable[int], records: list[RequestRecord]) -> float | None:
    prompts = sum(record.prompt_tokens for record in records)
    return round(sum(parts) / prompts, 4) if prompts else None


def _tails(name: str, values: list[float]) -> Point:
    values.sort()
    return {f"{name}_p50_ms": _quantile(values, 0.5), f"{name}_p95_ms": _quantile(values, 0.95)}


def _quantile(ordered: list[float], q: float) -> float | None:
    """The smallest value that a share `q` of all does not exceed."""
    return round(ordered[max(0, -int(-q * len(ordered) // 1) - 1)], 2) if ordered else None
