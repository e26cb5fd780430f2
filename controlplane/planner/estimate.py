"""What a number of workers would make of a load: latencies, and who would meet the targets. Pure.

Requests arrive at `rate` at `workers` equal engines that share them well. Each step of an engine
costs what its curve says (`controlplane.capacity`), and takes prompt tokens up to its budget, so

    dec  = request * batch + kv_token * batch * context      what decoding adds to a step
    step = base / (1 - rate_w * work)                        of an engine at rest on average, where
    work = new * prefill + after * (request + kv_token * context)       one request's share
    own  = new * (prefill + (base + dec) / budget) + (base + dec)       a prompt's own computation

A request waits for prompts before it. Engines with a router in front are taken as one queue with
as many servers, by Sakasegawa's approximation (1977) of G/G/m, whose wait, if there is one, is
about exponential:

    busy   = rate_w * E[own]
    P(any) = busy ** (sqrt(2 (workers + 1)) - 1)
    E[wait | any] = E[own] * (ca2 + cs2) / 2 / (workers * (1 - busy))

Its answer of n tokens takes n steps and the prompts that arrive meanwhile, a compound Poisson sum:

    T = n * (base + dec) / (1 - p),   p = rate_w * E[new] * prefill,
    var T = rate_w * E[(new * prefill)^2] * T / (1 - p)^2 / workers

The last factor is the router's doing: work that is dealt out evenly to so many engines reaches each
of them with that share of its variance, as when every m-th arrival of a Poisson process is taken.

All of it is computed for each request of a sample and never for a mean one, so that the short half
of a bimodal mix counts as itself (AS20). Attainment is told of reachable requests: those that an
idle engine would serve in time, and with some to spare. No number of workers is of any help to the
others, and on one that an idle engine only just serves in time no number could be built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controlplane.capacity import Curve
from proto.workers import Role

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

IDLE = 1_000_000
"""So many workers that nobody waits."""
WORKERS_MAX = 4_096
REACH = 0.8
"""Of its targets an idle engine takes at most so much for a request within reach."""


@dataclass(frozen=True)
class Load:
    """What a phase is asked to bear. Arrays have an entry for each sampled request."""

    rate: float
    """Requests a second."""
    burstiness: float
    """Squared coefficient of variation of the times between arrivals; 1: a Poisson process."""
    prompt_tokens: Floats
    new_tokens: Floats
    """Of a prompt, to be computed."""
    after_first: Floats
    """Tokens of the answer after its first."""
    ttft_ms: Floats
    tpot_ms: Floats
    """Targets."""
    queued_tokens: float = 0.0
    """Prompt tokens that have been waiting for some time, in all."""
    running: float = 0.0
    """Sequences being answered now, in all; at least as many as `rate` makes are reckoned with."""
    context_tokens: float = 0.0
    """Of each of those, on average."""

    def __len__(self) -> int:
        return len(self.new_tokens)

    def tighter(self, share: float) -> Load:
        """The same with this share of each target."""
        return replace(self, ttft_ms=self.ttft_ms * share, tpot_ms=self.tpot_ms * share)

    def at_rate(self, rate: float) -> Load:
        """The same mix at another rate, in equilibrium."""
        return replace(self, rate=rate, queued_tokens=0.0, running=0.0)


class Engine(NamedTuple):
    """One worker of a pool."""

    curve: Curve
    budget_tokens: int
    """Prompt tokens a step, at most."""
    running_max: int
    kv_tokens: int
    """That its cache holds; 0: not known."""
    accept_length: float = 1.0
    """Tokens that a step gives each sequence (SD9)."""


class Estimate(NamedTuple):
    """What is to be expected."""

    attainment: float
    """Share of the reachable requests that meet both targets."""
    ttft_met: float
    tpot_met: float
    ttft_ms: float
    """That the wanted share of requests stays below; infinite if the queue grows for ever."""
    tpot_ms: float
    kv_share: float
    """Of the caches, that the sequences take."""


NOTHING_TO_DO = Estimate(1.0, 1.0, 1.0, 0.0, 0.0, 0.0)


def estimate(load: Load, engine: Engine, workers: int, role: Role, share: float) -> Estimate:
    """For `workers` alike; `share` of the requests is what latencies are told for."""
    if not len(load):
        return NOTHING_TO_DO
    if workers < 1:
        return Estimate(0.0, 0.0, 0.0, math.inf, math.inf, 0.0)
    reach = _reach(load, engine, role)
    model = _Model(load, engine, workers, role)
    ttft_met, tpot_met = model.ttft_met(), model.tpot_met()
    return Estimate(
        attainment=_mean_of(ttft_met * tpot_met, reach),
        ttft_met=_mean_of(ttft_met, reach),
        tpot_met=_mean_of(tpot_met, reach),
        ttft_ms=model.ttft_tail_ms(share),
        tpot_ms=model.tpot_tail_ms(share),
        kv_share=model.kv_share,
    )


def reachable(load: Load, engine: Engine, role: Role) -> float:
    """Share of the requests that an idle engine serves within their targets."""
    return float(_reach(load, engine, role).mean()) if len(load) else 1.0


def _reach(load: Load, engine: Engine, role: Role) -> Flags:
    """Which of the requests an idle engine serves in time, with some to spare."""
    idle = _Model(load.at_rate(1e-9).tighter(REACH), engine, IDLE, role)
    within: Flags = idle.ttft_met() * idle.tpot_met() > 0.5
    return within


def _mean_of(met: Floats, reach: Flags) -> float:
    return float(met[reach].mean()) if reach.any() else 1.0


def needed(load: Load, engine: Engine, role: Role, goal: float, kv_max: float) -> float:
    """How many workers keep `goal` of the reachable requests within their targets, with at most
    `kv_max` of the caches in use. 0 without load."""
    if not len(load) or (load.rate <= 0 and not load.running and not load.queued_tokens):
        return 0.0

    reach = _reach(load, engine, role)

    def holds(workers: int) -> bool:
        model = _Model(load, engine, workers, role)
        met = _mean_of(model.ttft_met() * model.tpot_met(), reach)
        return met >= goal and model.kv_share <= kv_max

    high = 1
    while not holds(high):
        high *= 2
        if high > WORKERS_MAX:
            return float(WORKERS_MAX)
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return float(high)


class _Model:
    """The formulas above for one load and number of workers."""

    def __init__(self, load: Load, engine: Engine, workers: int, role: Role) -> None:
        curve = engine.curve
        self._load, self._workers = load, workers
        self._prefills, self._decodes = role is not Role.DECODE, role is not Role.PREFILL
        rate_ms = load.rate / workers / 1000
        after = load.after_first / engine.accept_length
        context = load.prompt_tokens + load.after_first / 2
        sequence_ms = curve.decode_request_ms + curve.decode_kv_token_ms * context
        new_ms = load.new_tokens * curve.prefill_token_ms if self._prefills else 0 * after
        decode_ms = float((after * sequence_ms).mean()) if self._decodes else 0.0
        self._base_ms = max(curve.decode_base_ms, 1e-6)
        self._prompts = rate_ms * float(new_ms.mean())
        room = 1 - self._prompts - rate_ms * decode_ms
        self.kv_share = 0.0
        added_ms = 0.0
        if self._decodes:
            step_ms = self._base_ms / room if room > 1e-6 else math.inf
            batch = rate_ms * float(after.mean()) * step_ms
            context_tokens = float((after * context).sum() / max(1e-9, after.sum()))
            if load.running / workers > batch:
                # What is there counts as it is, whatever equilibrium would have.
                batch = load.running / workers
                context_tokens = load.context_tokens or context_tokens
            wanted = batch
            batch = min(batch, engine.running_max)
            added_ms = batch * (curve.decode_request_ms + curve.decode_kv_token_ms * context_tokens)
            if engine.kv_tokens:
                self.kv_share = min(wanted, 1e9) * context_tokens / engine.kv_tokens
        self._step_ms = self._base_ms + added_ms
        self._after, self._accept = after, engine.accept_length
        token_ms = curve.prefill_token_ms + self._step_ms / max(1, engine.budget_tokens)
        self._own_ms = load.new_tokens * token_ms + self._step_ms
        mean_ms = float((load.new_tokens * token_ms).mean())
        self._busy = rate_ms * mean_ms
        spread = float(np.var(load.new_tokens) / max(1e-9, load.new_tokens.mean() ** 2))
        self._waits = 0.0
        self._wait_ms = 0.0
        if self._prefills and self._busy < 1:
            self._waits = self._busy ** (math.sqrt(2 * (workers + 1)) - 1)
            self._wait_ms = mean_ms * (load.burstiness + spread) / 2
            self._wait_ms /= workers * (1 - self._busy)
        self._backlog_ms = load.queued_tokens / workers * token_ms
        self._jitter_ms2 = rate_ms * float((new_ms**2).mean()) / workers

    def ttft_met(self) -> Floats:
        """Chance of each sampled request to have its first token in time."""
        if not self._prefills:
            return np.ones(len(self._load))
        if self._busy >= 1:
            return np.zeros(len(self._load))
        spare_ms = self._load.ttft_ms - self._own_ms - self._backlog_ms
        late = self._waits * np.exp(-np.maximum(spare_ms, 0) / max(1e-9, self._wait_ms))
        met: Floats = np.where(spare_ms > 0, 1 - late, 0.0)
        return met

    def tpot_met(self) -> Floats:
        """Chance of each sampled request to be answered at the promised pace."""
        if not self._decodes:
            return np.ones(len(self._load))
        if self._prompts >= 1:
            return np.zeros(len(self._load))
        budget_ms = self._load.after_first * self._load.tpot_ms
        mean_ms, deviation_ms = self._answer_ms()
        met = _normal((budget_ms - mean_ms) / np.maximum(deviation_ms, 1e-6))
        return np.where(self._load.after_first > 0, met, 1.0)

    def ttft_tail_ms(self, share: float) -> float:
        """Time to first token that this share of the requests stays below."""
        if not self._prefills:
            return 0.0
        if self._busy >= 1:
            return math.inf
        tail_ms = max(1e-9, self._wait_ms) * math.log(max(1.0, self._waits / (1 - share + 1e-9)))
        return float(np.quantile(self._own_ms, share)) + self._backlog_ms + tail_ms

    def tpot_tail_ms(self, share: float) -> float:
        """Time per output token that this share of the requests stays below."""
        answered = self._load.after_first > 0
        if not self._decodes or not answered.any():
            return 0.0
        if self._prompts >= 1:
            return math.inf
        mean_ms, deviation_ms = self._answer_ms()
        upper_ms = mean_ms + 1.64 * deviation_ms
        return float(np.quantile(upper_ms[answered] / self._load.after_first[answered], share))

    def _answer_ms(self) -> tuple[Floats, Floats]:
        """How long each answer takes, and its standard deviation."""
        room = 1 - self._prompts
        mean_ms = self._after * self._step_ms / room
        deviation_ms = np.sqrt(self._jitter_ms2 * mean_ms) / room
        return mean_ms, deviation_ms


def _normal(z: Floats) -> Floats:
    """The normal distribution function, to one part in a hundred."""
    chance: Floats = 1 / (1 + np.exp(-1.702 * np.clip(z, -30, 30)))
    return chance
