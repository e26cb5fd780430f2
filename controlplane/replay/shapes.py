"""Made-up hours whose demand changes, for planners: diurnal, flash crowd, mix flip and noise.

Requests come as a Poisson process whose rate is a function of time (thinning, after Lewis and
Shedler, 1979). Prompts and answers are log-normal. A share of the prompts begins with one of a few
system prompts; all else is seen once.

- `diurnal`: two days of half an hour each; the rate swings between a quarter and seven quarters of
  its mean.
- `flash`: quiet, then within three minutes four times as many, for ten minutes, and back.
- `mixflip`: prompts of 16,000 tokens with answers of 200; then of 200, with answers of 2,000.
- `noise`: a rate that never stays: its logarithm wanders around its mean, forgetting itself within
  a minute and a half.

Equal seeds give equal traces.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from controlplane.replay.trace import TRACE_BLOCK_TOKENS, TraceRequest

HOUR_S = 3_600.0
SYSTEM_PROMPTS = 16
SYSTEM_BLOCKS = 2


@dataclass(frozen=True)
class Mix:
    """What requests are like: means, and how much they scatter."""

    prompt_tokens: float
    output_tokens: float
    sigma: float = 0.6


CHAT = Mix(14_000, 500, 0.5)
LONG_IN, LONG_OUT = Mix(16_000, 200, 0.3), Mix(200, 2_000, 0.3)


@dataclass(frozen=True)
class Shape:
    """An hour: how many requests a second at a time, and what they are like then."""

    rate: Callable[[float, random.Random], Callable[[float], float]]
    most: float
    """The rate is never above this."""
    mix: Callable[[float], Mix]


def shaped(name: str, seed: int = 0, rate_scale: float = 1.0) -> list[TraceRequest]:
    """The requests of the hour of that name, `rate_scale` times as many. KeyError if there is
    none."""
    return list(_requests(SHAPES[name], random.Random(seed), rate_scale))


def _requests(shape: Shape, rng: random.Random, scale: float) -> Iterator[TraceRequest]:
    rate = shape.rate(scale, rng)
    fresh = SYSTEM_PROMPTS * SYSTEM_BLOCKS
    now_s = 0.0
    while True:
        now_s += rng.expovariate(shape.most * scale)
        if now_s >= HOUR_S:
            return
        if rng.random() * shape.most * scale >= rate(now_s):
            continue
        mix = shape.mix(now_s)
        prompt = _length(mix.prompt_tokens, mix.sigma, rng)
        blocks = math.ceil(prompt / TRACE_BLOCK_TOKENS)
        system = _system(rng) if blocks > SYSTEM_BLOCKS else ()
        own = range(fresh, fresh + blocks - len(system))
        fresh += len(own)
        yield TraceRequest(
            now_s, prompt, _length(mix.output_tokens, mix.sigma, rng), (*system, *own)
        )


def _system(rng: random.Random) -> Sequence[int]:
    first = rng.randrange(SYSTEM_PROMPTS) * SYSTEM_BLOCKS
    return range(first, first + SYSTEM_BLOCKS)


def _length(mean: float, sigma: float, rng: random.Random) -> int:
    return max(2, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def _diurnal(scale: float, rng: random.Random) -> Callable[[float], float]:
    del rng
    return lambda s: scale * 1.5 * (1 - 0.75 * math.cos(2 * math.pi * s / (HOUR_S / 2)))


def _flash(scale: float, rng: random.Random) -> Callable[[float], float]:
    del rng
    begin_s, ramp_s, hold_s, quiet, crowd = 1_500.0, 180.0, 600.0, 0.7, 2.8

    def rate(s: float) -> float:
        up = min(1.0, max(0.0, (s - begin_s) / ramp_s))
        down = min(1.0, max(0.0, (s - begin_s - ramp_s - hold_s) / ramp_s))
        return scale * (quiet + (crowd - quiet) * (up - down))

    return rate


def _mixflip(scale: float, rng: random.Random) -> Callable[[float], float]:
    del rng
    return lambda s: scale * (0.9 if s < HOUR_S / 2 else 2.4)


def _noise(scale: float, rng: random.Random) -> Callable[[float], float]:
    step_s, keep, spread = 10.0, math.exp(-10.0 / 90.0), 0.35
    value, values = 0.0, []
    for _ in range(int(HOUR_S / step_s) + 1):
        values.append(value)
        value = keep * value + spread * math.sqrt(1 - keep**2) * rng.gauss(0, 1)
    mean = 1.5 * math.exp(-(spread**2) / 2)
    return lambda s: scale * min(4.5, mean * math.exp(values[int(s / step_s)]))


SHAPES = {
    "diurnal": Shape(_diurnal, 2.625, lambda _: CHAT),
    "flash": Shape(_flash, 2.8, lambda _: CHAT),
    "mixflip": Shape(_mixflip, 2.4, lambda s: LONG_IN if s < HOUR_S / 2 else LONG_OUT),
    "noise": Shape(_noise, 4.5, lambda _: CHAT),
}
