"""What if it ran on other hardware: one trace, the same router, engines of one profile at a time.

Two questions for each profile. *Equal fleet*: as many workers of each; who keeps the promise, and
at what cost? *Equal SLO*: the fewest workers of each that keep both targets for the wanted share of
all requests. More workers are taken to be better, so the fewest are found by halving, from what the
fluid limit (`capacity`) says. What no fleet can keep (a prompt too long for its target even alone)
is found beforehand: `reachable` is the share of requests that an idle worker would serve in time.

The trace's arrivals stay as they are, so a profile that is far too fast for it is idle and dear at
an equal fleet; the second question is the one to buy by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import msgspec

from controlplane.replay.arms import arm
from controlplane.replay.capacity import engine_rate, ideal_cached_tokens
from controlplane.replay.hardware import dollars_per_hour
from controlplane.replay.parallel import run_all
from controlplane.replay.report import (
    PolicyReport,
    Setting,
    Targets,
    TraceReport,
    ideal_hit_rate,
    policy_report,
)
from controlplane.replay.simulate import Scenario, simulate
from controlplane.replay.trace import TraceRequest
from proto.hardware import Catalogue
from proto.hashing import Words
from workers.sim.timing import PROFILES, Profile, attention_pairs

WORKERS_MAX = 256


@dataclass(frozen=True)
class Question:
    """What is the same for every profile."""

    requests: list[TraceRequest]
    names: list[Words]
    block_tokens: int
    targets: Targets
    workers: int
    hold: float
    """Share of all requests that must keep both targets."""
    policy: str
    catalogue: Catalogue


class Figures(msgspec.Struct, frozen=True):
    """A fleet of one profile on the trace."""

    workers: int
    accelerators: int
    dollars_per_hour: float | None
    results: PolicyReport


class Answer(msgspec.Struct, frozen=True):
    """What one profile makes of the trace."""

    profile: str
    derived: bool
    """Nobody measured it: its timing is scaled from another's."""
    kv_tokens: int
    capacity: float
    """Requests of this kind a second that one worker carries within the TPOT target; 0: none."""
    reachable: float
    """Share of requests that keep both targets alone on a worker with an ideal cache."""
    equal_fleet: Figures
    equal_slo: Figures | None
    """None: out of reach, or not even `WORKERS_MAX` workers keep the targets."""


class Comparison(msgspec.Struct, frozen=True):
    """Everything, as `--json` writes it."""

    profiles: Sequence[Answer]
    trace: TraceReport
    settings: dict[str, Setting]


def compare(
    question: Question, profiles: Sequence[Profile], on_progress: Callable[[int, int], None]
) -> list[Answer]:
    """One answer a profile, in order; `on_progress` is called with the number of a profile and how
    many requests have been replayed on it."""
    return run_all([partial(_answer, question, profile) for profile in profiles], on_progress)


def fewest(holds: Callable[[int], bool], guess: int, most: int) -> int | None:
    """The least count from 1 to `most` that holds, if more always hold where fewer do; None if
    `most` does not. Looks near the guess first."""
    low, high = 0, guess
    while not holds(high):
        if high == most:
            return None
        low, high = high, min(most, 2 * high)
    step = 1
    while not low and high - step > 0 and holds(high - step):
        high, step = high - step, 2 * step
    low = low or max(0, high - step)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _answer(question: Question, profile: Profile, on_outcome: Callable[[], None]) -> Answer:
    cached_tokens = ideal_cached_tokens(question.names, question.block_tokens)
    capacity = _capacity(question, profile, cached_tokens)
    reachable = _reachable(question, profile, cached_tokens)

    @cache
    def on(workers: int) -> Figures:
        return _figures(question, profile, workers, on_outcome)

    def holds(workers: int) -> bool:
        return on(workers).results.goodput >= question.hold

    equal_fleet = on(question.workers)
    least = None
    if capacity and reachable >= question.hold:
        guess = min(WORKERS_MAX, max(1, math.ceil(_rate(question.requests) / capacity)))
        least = fewest(holds, guess, WORKERS_MAX)
    return Answer(
        profile=profile.name,
        derived=profile.name not in PROFILES,
        kv_tokens=profile.kv_capacity_tokens,
        capacity=capacity,
        reachable=reachable,
        equal_fleet=equal_fleet,
        equal_slo=None if least is None else on(least),
    )


def _figures(
    question: Question, profile: Profile, workers: int, on_outcome: Callable[[], None]
) -> Figures:
    fleet = (profile,) * workers
    price = dollars_per_hour(fleet, question.catalogue)
    scenario = Scenario(
        requests=question.requests,
        names=question.names,
        profiles=fleet,
        block_tokens=question.block_tokens,
        targets=question.targets,
        dollars_per_hour=price,
    )
    ideal = ideal_hit_rate(question.names)
    run = simulate(scenario, arm(question.policy, question.targets), on_outcome)
    accelerators = workers * profile.accelerators
    return Figures(workers, accelerators, price, policy_report(run, ideal, question.targets))


def _capacity(question: Question, profile: Profile, cached_tokens: Sequence[int]) -> float:
    try:
        return engine_rate(question.requests, cached_tokens, profile, question.targets.tpot_ms)
    except ValueError:  # a step alone takes too long
        return 0.0


def _rate(requests: Sequence[TraceRequest]) -> float:
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return len(requests) / span_s if span_s > 0 else 0.0


def _reachable(question: Question, profile: Profile, cached_tokens: Sequence[int]) -> float:
    targets, cost, budget = question.targets, profile.cost, profile.max_num_batched_tokens

    def in_time(request: TraceRequest, cached: int) -> bool:
        new = request.input_tokens - min(cached, request.input_tokens - 1)
        chunks, rest = divmod(new, budget)
        pairs = attention_pairs(new, request.input_tokens - new)
        ttft_ms = chunks * cost.prefill_ms(budget) + cost.attention_pair_ms * pairs
        ttft_ms += cost.prefill_ms(rest) if rest else 0.0
        tpot_ms = cost.step_ms(0, 0, 1, request.input_tokens + request.output_tokens // 2)
        late = request.output_tokens > 1 and tpot_ms > targets.tpot_ms
        return ttft_ms <= targets.ttft_ms and not late

    pairs = zip(question.requests, cached_tokens, strict=True)
    return sum(in_time(*each) for each in pairs) / len(question.requests)
