"""What will be asked for: rate, prompt and output lengths, some minutes ahead.

Each is a series of equal bins. Its forecast is exponential smoothing with a damped trend, fitted
anew each time by statsmodels (the choice, and what else was tried: docs/decisions/0004). Until
`WARM_BINS` are known, and where statsmodels is not installed, what was is taken to go on: the
constant predictor. Days repeat themselves: from the second one on, bins are divided by what their
time of day usually is, and forecasts multiplied by it.

Hit rate and accept length are not forecast: they are what they were last (AS6).
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from controlplane.planner.estimate import Floats

WARM_BINS = 10
FITTED_BINS = 120
"""The last so many are fitted: two hours of minutes."""
LATELY_BINS = 3
SEASON_S = 86_400.0
SLOTS = 288
"""Of a day, five minutes each."""
SEASON_GAIN = 0.3
BELIEVABLE = 2.0
"""Of the most that was seen, or that is usual, and no more than that is forecast."""


class Bin(NamedTuple):
    """One interval of traffic; lengths are means, 0 where nothing came."""

    start_s: float
    rate: float
    prompt_tokens: float
    output_tokens: float


class Forecast(NamedTuple):
    """What is expected, at the most, within the horizon."""

    rate: float
    prompt_tokens: float
    output_tokens: float


class History(msgspec.Struct):
    """The traffic of one model; can be stored and restored."""

    bin_s: float
    bins: deque[Bin] = msgspec.field(default_factory=deque)
    season: list[float] = msgspec.field(default_factory=lambda: [0.0] * SLOTS)
    """Mean rate at each time of day, 0 where not known yet."""
    began_s: float = 0.0

    def add(self, one: Bin) -> None:
        """The next bin is over."""
        if not self.bins and not self.began_s:
            self.began_s = one.start_s
        self.bins.append(one)
        while len(self.bins) > FITTED_BINS:
            self.bins.popleft()
        slot = _slot(one.start_s)
        known = self.season[slot]
        self.season[slot] = known + SEASON_GAIN * (one.rate - known) if known else one.rate

    @property
    def seasonal(self) -> bool:
        """A whole day is known."""
        return bool(self.bins) and self.bins[-1].start_s - self.began_s >= SEASON_S


def forecast(history: History, horizon_s: float, *, smooth: bool = True) -> Forecast | None:
    """The highest rate, and mean lengths, up to `horizon_s` after the last bin; None without any
    bin. Takes some tens of milliseconds; changes nothing."""
    bins = list(history.bins)
    if not bins:
        return None
    steps = max(1, round(horizon_s / history.bin_s))
    rates = np.array([each.rate for each in bins])
    usual, to_come = np.ones(len(bins)), np.ones(steps)
    most = math.inf
    if history.seasonal:
        usual = _usual(history.season, [each.start_s for each in bins])
        ends_s = bins[-1].start_s + history.bin_s
        to_come = _usual(history.season, [ends_s + i * history.bin_s for i in range(steps)])
        most = BELIEVABLE * max(rates.max(), to_come.max())
    ahead = series(list(rates / usual), steps, smooth=smooth) * to_come
    prompts = [each.prompt_tokens for each in bins if each.prompt_tokens > 0]
    outputs = [each.output_tokens for each in bins if each.output_tokens > 0]
    return Forecast(
        rate=min(most, float(ahead.max())),
        prompt_tokens=float(series(prompts, steps, smooth=smooth).mean()) if prompts else 0.0,
        output_tokens=float(series(outputs, steps, smooth=smooth).mean()) if outputs else 0.0,
    )


def series(values: Sequence[float], steps: int, *, smooth: bool = True) -> Floats:
    """The next `steps` of a series that is never below 0."""
    if len(values) < WARM_BINS or not smooth or not installed():
        return np.full(steps, float(np.mean(values[-LATELY_BINS:])) if values else 0.0)
    # Here and not above: half a second to import, for who forecasts only.
    from statsmodels.tsa.holtwinters import Holt

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that has not converged: it is near enough
        fitted = Holt(
            np.asarray(values, dtype=float), damped_trend=True, initialization_method="estimated"
        ).fit()
    ahead: Floats = np.asarray(fitted.forecast(steps), dtype=np.float64)
    if not np.isfinite(ahead).all():
        return np.full(steps, float(np.mean(values[-LATELY_BINS:])))
    # A trend may be believed, and not to the moon.
    believable: Floats = np.clip(ahead, 0.0, BELIEVABLE * max(values[-FITTED_BINS:]))
    return believable


def installed() -> bool:
    """Whether there is a library to forecast with."""
    return importlib.util.find_spec("statsmodels") is not None


def _usual(season: Sequence[float], starts_s: Sequence[float]) -> Floats:
    """What is usual at these times; where nothing is known of a time of day, the mean of a day:
    bins are not exactly of a length, and planners are away, so that there are such times."""
    known = [rate for rate in season if rate > 0]
    anyhow = sum(known) / len(known) if known else 1.0
    return np.array([season[_slot(start_s)] or anyhow for start_s in starts_s])


def _slot(time_s: float) -> int:
    return int(time_s % SEASON_S / SEASON_S * SLOTS)
