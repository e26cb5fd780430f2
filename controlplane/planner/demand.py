"""What one model is asked for, measured at the door: those turned away count too. Pure.

Request records come when a request has ended, up to minutes after it arrived. So how many arrive
now is found by conservation: those that have ended in a window, those turned away in it, and by how
many the number of open ones has grown, which load reports tell at once. What requests are like is
known from the records alone: the last ones, as a sample, each with its class (AS2, AS3, AS20).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from controlplane.planner.estimate import Engine, Floats, Load
from proto.progress import COMPLETED
from proto.records import RequestRecord

SAMPLE_MAX = 384
"""Requests that stand for all; enough for a 99th percentile, few enough for thousands of
estimates a second."""
GAPS_MAX = 512
BURSTINESS_MAX = 20.0
USUAL_RISE = 0.004
"""Of a rate, in a second: a quarter more in a minute."""
MIX_CHANGED = 1.5
"""A mean prompt that is longer, or shorter, by this factor is no accident of the sample."""
MIX_REQUESTS_MIN = 20
GROWTH_MAX = 1.5
"""Of the rate, while new workers start."""
SWING_S = 900.0
"""Over which it is watched how far the rate gets away from what it was."""
SWINGS = 1.5
"""Standard deviations of that to be ready for."""


class Targets(NamedTuple):
    """What a class was promised, in milliseconds."""

    ttft_ms: float
    tpot_ms: float


class Asked(NamedTuple):
    """One request as it was asked, and how it fared."""

    ended_s: float
    slo_class: str
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    served: bool
    ttft_ms: float | None
    tpot_ms: float | None


class Flow(NamedTuple):
    """Totals at one moment, since the planner began."""

    now_s: float
    open: int
    """Requests in engines, by their load reports."""
    ended: int
    refused: int
    prompt_tokens: int
    """That engines have computed, or have waiting."""

    def since(self, before: Flow) -> int:
        """Requests that have arrived in between."""
        arrived = self.open - before.open + self.ended - before.ended
        return arrived + self.refused - before.refused


class Fared(NamedTuple):
    """How requests of one class fared of late: tails, never means (AS3)."""

    requests: int
    met: float
    ttft_ms: float
    tpot_ms: float


class Demand:
    """The requests of one model."""

    def __init__(self, sample_s: float) -> None:
        self._sample_s = sample_s
        self._asked: deque[Asked] = deque(maxlen=4 * SAMPLE_MAX)
        self._arrivals: deque[float] = deque(maxlen=GAPS_MAX)
        self._flows: deque[Flow] = deque(maxlen=512)
        self._ended = 0
        self._refused = 0
        self.last_record_s = 0.0

    def hear(self, record: RequestRecord, now_s: float) -> None:
        """A request has ended, or was turned away; times are of the planner's own clock."""
        refused = record.worker is None
        self._refused += refused
        self._ended += not refused
        self.last_record_s = now_s
        self._arrivals.append(record.arrived_s)
        cached = record.cached_tokens
        if cached is None:
            cached = record.predicted_cached_tokens
        self._asked.append(
            Asked(
                now_s,
                record.slo_class,
                record.prompt_tokens,
                record.output_tokens,
                min(cached, max(0, record.prompt_tokens - 1)),
                record.outcome == COMPLETED,
                record.ttft_ms,
                record.tpot_ms,
            )
        )

    def flow(self, open_requests: int, prompt_tokens: int, now_s: float) -> None:
        """So many requests are in engines now, and so many prompt tokens have come to be computed
        in all; said once a tick."""
        self._flows.append(Flow(now_s, open_requests, self._ended, self._refused, prompt_tokens))

    def rate(self, window_s: float, now_s: float) -> float:
        """Requests that arrived a second, over about the last `window_s`."""
        if len(self._flows) < 2:
            return 0.0
        first, latest = self._window(window_s, now_s)
        return max(0.0, latest.since(first) / (latest.now_s - first.now_s))

    def refused_rate(self, window_s: float, now_s: float) -> float:
        """Requests that were turned away a second, over about the last `window_s`."""
        if len(self._flows) < 2:
            return 0.0
        first, latest = self._window(window_s, now_s)
        return (latest.refused - first.refused) / (latest.now_s - first.now_s)

    def _window(self, window_s: float, now_s: float) -> tuple[Flow, Flow]:
        """Its first and last moment, at least one tick apart."""
        flows, latest = self._flows, self._flows[-1]
        first = next((f for f in flows if f.now_s >= now_s - window_s - 1e-6), flows[0])
        return (first if first.now_s < latest.now_s else flows[-2]), latest

    def _mix_change(self, sampled_tokens: float, window_s: float, now_s: float) -> float:
        """By what factor the prompts that arrive now differ from the sampled ones, whose requests
        have ended; 1 unless by far. As with the rate it is found by conservation: tokens that have
        come to be computed, by requests that have come."""
        if len(self._flows) < 2 or sampled_tokens <= 0:
            return 1.0
        first, latest = self._window(window_s, now_s)
        served = latest.since(first) - (latest.refused - first.refused)
        tokens = latest.prompt_tokens - first.prompt_tokens
        if served < MIX_REQUESTS_MIN or tokens <= 0:
            return 1.0
        factor = tokens / served / sampled_tokens
        return factor if not 1 / MIX_CHANGED < factor < MIX_CHANGED else 1.0

    def coming_rate(self, window_s: float, ahead_s: float, now_s: float) -> float:
        """Requests a second to be reckoned with in `ahead_s`: those of the last two thirds of the
        window, and as much more as a rise will have brought by then, at most by half. A falling
        rate is taken to stay."""
        lately_s = window_s * 2 / 3
        lately = self.rate(lately_s, now_s)
        rise = self._rise(2 * window_s, now_s) * (lately_s / 2 + ahead_s)
        return min(lately + rise, GROWTH_MAX * lately)

    def _rise(self, window_s: float, now_s: float) -> float:
        """By how much the rate rises a second: the slope of a straight line through the window's
        ticks, drawn towards none by how unsure it is."""
        flows = [f for f in self._flows if f.now_s >= now_s - window_s - 1e-6]
        if len(flows) < 6:
            return 0.0
        ticks = list(pairwise(flows))
        times = np.array([(a.now_s + b.now_s) / 2 for a, b in ticks])
        spans = np.array([b.now_s - a.now_s for a, b in ticks])
        rates = np.array([b.since(a) for a, b in ticks]) / spans
        mean = float(rates.mean())
        if mean <= 0:
            return 0.0
        times -= times.mean()
        spread = float((times**2).sum())
        slope = float((times * rates).sum()) / spread
        left = rates - mean - slope * times
        scatter2 = max(float((left**2).sum()) / (len(ticks) - 2), mean / float(spans.mean()))
        error2 = scatter2 / spread
        usual2 = (USUAL_RISE * mean) ** 2
        return max(0.0, slope * usual2 / (usual2 + error2))

    def feared_rate(self, window_s: float, ahead_s: float, now_s: float) -> float:
        """Requests a second that may be there in `ahead_s` though nothing tells of them yet: the
        usual rate, and as much more as it has strayed of late from what it was `ahead_s` before,
        beyond what chance makes of counts. 0 until that is known."""
        short_s, long_s = window_s * 2 / 3, window_s * 2
        watched_s = SWING_S + ahead_s + long_s
        flows = [f for f in self._flows if f.now_s >= now_s - watched_s - 1e-6]
        if not flows or now_s - flows[0].now_s < watched_s - SWING_S * 2 / 3:
            return 0.0
        times = np.array([f.now_s for f in flows])
        arrived = np.array([f.since(flows[0]) for f in flows], dtype=float)

        def rates(until_s: Floats, over_s: float) -> Floats:
            since = np.interp(until_s - over_s, times, arrived)
            found: Floats = (np.interp(until_s, times, arrived) - since) / over_s
            return found

        later = times[times >= times[0] + ahead_s + long_s]
        strayed = rates(later, short_s) - rates(later - ahead_s, long_s)
        mean = max(0.0, float(rates(later, short_s).mean()))
        chance2 = mean * (1 / short_s + 1 / long_s)
        swing = np.sqrt(max(0.0, float((strayed**2).mean()) - chance2))
        return self.rate(long_s, now_s) + SWINGS * float(swing)

    @property
    def burstiness(self) -> float:
        """Squared coefficient of variation of the gaps between arrivals, as far as is known."""
        if len(self._arrivals) < 32:
            return 1.0
        gaps = np.diff(np.sort(np.array(self._arrivals)))
        mean = float(gaps.mean())
        if mean <= 0:
            return 1.0
        return float(np.clip(gaps.var() / mean**2, 1.0, BURSTINESS_MAX))

    def open_growth(self, window_s: float, now_s: float) -> float:
        """By how much the number of open requests has grown a second, for sure: the slope over
        the window less twice its standard error; negative growth is none."""
        flows = [f for f in self._flows if f.now_s >= now_s - window_s]
        if len(flows) < 5:
            return 0.0
        times = np.array([f.now_s for f in flows])
        counts = np.array([f.open for f in flows], dtype=float)
        times -= times.mean()
        spread = float((times**2).sum())
        slope = float((times * counts).sum()) / spread
        left = counts - counts.mean() - slope * times
        error = float(np.sqrt((left**2).sum() / (len(flows) - 2) / spread))
        return max(0.0, slope - 2 * error)

    def recent(self, now_s: float) -> Sequence[Asked]:
        """The sample: what ended within the window, and at least a few where that is little."""
        asked = list(self._asked)
        young = [each for each in asked if each.ended_s >= now_s - self._sample_s]
        young = young if len(young) >= 32 else asked[-32:]
        step = max(1, -(-len(young) // SAMPLE_MAX))
        return young[::-step][::-1]

    def load(
        self,
        rate: float,
        targets: Mapping[str, Targets],
        default: Targets,
        now_s: float,
        *,
        window_s: float = 0.0,
    ) -> Load:
        """The sample as a load at this rate, with no regard to what is in engines but for the
        length of the prompts that have come in the last `window_s`, where that is another one."""
        sample = [each for each in self.recent(now_s) if each.prompt_tokens > 0]
        served = [each.output_tokens for each in sample if each.served and each.output_tokens]
        usual = float(np.median(served)) if served else 1.0
        promised = [targets.get(each.slo_class, default) for each in sample]
        output = _array([each.output_tokens if each.served else usual for each in sample])
        prompt = _array([each.prompt_tokens for each in sample])
        new = np.maximum(1.0, prompt - _array([each.cached_tokens for each in sample]))
        changed = 1.0
        if window_s and len(new):
            changed = self._mix_change(float(new.mean()), window_s, now_s)
        return Load(
            rate=rate,
            burstiness=self.burstiness,
            prompt_tokens=prompt * changed,
            new_tokens=np.maximum(1.0, new * changed),
            after_first=np.maximum(0.0, output - 1),
            ttft_ms=_array([each.ttft_ms for each in promised]),
            tpot_ms=_array([each.tpot_ms for each in promised]),
        )

    def fared(
        self,
        targets: Mapping[str, Targets],
        default: Targets,
        share: float,
        since_s: float,
        idle: Engine | None = None,
    ) -> Mapping[str, Fared]:
        """By class, those that ended since then; only those within reach, if it is said of what."""
        classes: dict[str, list[Asked]] = {}
        for each in self._asked:
            promised = targets.get(each.slo_class, default)
            if each.ended_s >= since_s and (idle is None or reachable(each, promised, idle)):
                classes.setdefault(each.slo_class, []).append(each)
        return {
            name: _fared(asked, targets.get(name, default), share)
            for name, asked in classes.items()
        }


def reachable(asked: Asked, targets: Targets, idle: Engine) -> bool:
    """An engine with nothing else to do would clearly have met the targets: it takes no more than
    half of them by its curve, which knows nothing of what long prompts cost beyond their length."""
    curve = idle.curve
    new_tokens = max(1, asked.prompt_tokens - asked.cached_tokens)
    steps = -(-new_tokens // max(1, idle.budget_tokens))
    own_ms = new_tokens * curve.prefill_token_ms + steps * curve.decode_base_ms
    pace_ms = curve.decode_base_ms / idle.accept_length
    return own_ms <= targets.ttft_ms / 2 and pace_ms <= targets.tpot_ms * 0.9


def _fared(asked: Sequence[Asked], targets: Targets, share: float) -> Fared:
    ttfts = [each.ttft_ms for each in asked if each.ttft_ms is not None]
    tpots = [each.tpot_ms for each in asked if each.tpot_ms is not None]
    met = sum(
        each.served
        and (each.ttft_ms or 0.0) <= targets.ttft_ms
        and (each.tpot_ms or 0.0) <= targets.tpot_ms
        for each in asked
    )
    return Fared(
        len(asked),
        met / len(asked),
        float(np.quantile(ttfts, share)) if ttfts else 0.0,
        float(np.quantile(tpots, share)) if tpots else 0.0,
    )


def _array(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)
