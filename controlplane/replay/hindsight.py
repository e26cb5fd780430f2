"""Fleets with hindsight: the schedules, of three families, that keep the goal for the least.

Each is found by replaying the trace again and again. One family is the fleets that never change;
the other two follow the work that is going to arrive, smoothed over one or over three minutes,
times a factor, each engine begun early enough to be ready in time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from controlplane.planner.settings import PlannerSettings
from controlplane.replay.arms import arm
from controlplane.replay.elastic import Elastic, ElasticRun, simulate_elastic
from controlplane.replay.parallel import Job
from controlplane.replay.report import Targets, within
from controlplane.replay.scalers import Schedule
from controlplane.replay.simulate import Scenario
from workers.sim.timing import attention_pairs

BIN_S = 15.0
SMOOTHED_S = (60.0, 180.0)
FACTORS = 4
"""Halvings when a schedule's factor is sought."""
FACTOR_RANGE = 1.0, 2.6

Steps = Sequence[tuple[float, int]]


@dataclass(frozen=True)
class Contest:
    """What is compared on: `elastic.first` is replaced by the static fleet's size."""

    scenario: Scenario
    elastic: Elastic
    settings: PlannerSettings
    goal: float
    policy: str = "slo"

    @property
    def targets(self) -> Targets:
        return self.scenario.targets


def attainment(run: ElasticRun, targets: Targets) -> float:
    """Share of all requests that met both targets."""
    outcomes = run.run.outcomes
    return sum(within(each, targets) for each in outcomes) / max(1, len(outcomes))


def fixed(contest: Contest, size: int, on_outcome: Callable[[], None]) -> ElasticRun:
    """A fleet that never changes."""
    return _run(contest, f"{size} engines", [(0.0, size)], on_outcome)


def searches(contest: Contest, goal: float) -> Mapping[str, Job[ElasticRun]]:
    """One for each family: the cheapest of it that keeps the goal, or one that does not where none
    does. A schedule is given up as soon as it has missed too many."""
    misses = math.ceil((1 - goal) * len(contest.scenario.requests))
    hasty = replace(contest, elastic=replace(contest.elastic, misses_max=misses))
    found: dict[str, Job[ElasticRun]] = {"oracle, steady": partial(_steady, hasty, goal)}
    for smoothed_s in SMOOTHED_S:
        found[f"oracle, {smoothed_s:g} s"] = partial(_following, hasty, smoothed_s, goal)
    return found


def _steady(contest: Contest, goal: float, on_outcome: Callable[[], None]) -> ElasticRun:
    """From `first` downwards."""
    size = contest.elastic.first
    best = fixed(contest, size, on_outcome)
    while size > contest.elastic.least and attainment(best, contest.targets) >= goal:
        size -= 1
        smaller = fixed(contest, size, on_outcome)
        if attainment(smaller, contest.targets) < goal:
            break
        best = smaller
    return best


def _following(
    contest: Contest, smoothed_s: float, goal: float, on_outcome: Callable[[], None]
) -> ElasticRun:
    work, (low, high) = _work(contest.scenario, smoothed_s), FACTOR_RANGE
    best: ElasticRun | None = None
    for _ in range(FACTORS):
        middle = (low + high) / 2
        run = _run(contest, "oracle", _begun_early(contest, work * middle), on_outcome)
        if attainment(run, contest.targets) >= goal:
            best, high = run, middle
        else:
            low = middle
    return best or run


def _run(contest: Contest, name: str, steps: Steps, on_outcome: Callable[[], None]) -> ElasticRun:
    elastic = replace(contest.elastic, first=steps[0][1])
    policy = arm(contest.policy, contest.targets)
    make = partial(Schedule, name, steps)
    return simulate_elastic(contest.scenario, policy, elastic, make, on_outcome)


def _work(scenario: Scenario, smoothed_s: float) -> np.ndarray:
    """Engines' worth of work in each bin of the trace, from its first arrival on: what its prompts
    and answers cost an engine that is as busy as it may be, at the time that they are computed."""
    profile = scenario.profiles[0]
    cost, tpot_ms = profile.cost, scenario.targets.tpot_ms
    room = 1 - cost.decode_base_ms / tpot_ms
    seen: set[int] = set()
    begin_s = scenario.requests[0].arrival_s
    span_s = scenario.requests[-1].arrival_s - begin_s + 120.0
    work = np.zeros(int(span_s / BIN_S) + 1)
    for request, names in zip(scenario.requests, scenario.names, strict=True):
        fresh = [name for name in names.tolist() if name not in seen]
        seen.update(fresh)
        cached = min((len(names) - len(fresh)) * scenario.block_tokens, request.input_tokens - 1)
        new = request.input_tokens - cached
        prompt_ms = cost.prefill_token_ms * new
        prompt_ms += cost.attention_pair_ms * attention_pairs(new, cached)
        context = request.input_tokens + request.output_tokens / 2
        answer_ms = request.output_tokens * (
            cost.decode_sequence_ms + cost.decode_kv_token_ms * context
        )
        after_s = request.arrival_s - begin_s
        begin = int(after_s / BIN_S)
        work[begin] += prompt_ms
        answer_s = request.output_tokens * tpot_ms / 2 / 1000
        end = min(len(work) - 1, int((after_s + answer_s) / BIN_S))
        work[begin : end + 1] += answer_ms / (end - begin + 1)
    workers = work / 1000 / BIN_S / room
    width = max(1, int(smoothed_s / BIN_S)) | 1
    padded = np.pad(workers, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _begun_early(contest: Contest, workers: np.ndarray) -> list[tuple[float, int]]:
    """Begun early enough: what is needed from now until a worker that is asked for now is ready."""
    elastic = contest.elastic
    ahead = int(np.ceil(elastic.start_s / BIN_S))
    counts = np.clip(np.ceil(workers), elastic.least, elastic.most).astype(int)
    early = [int(counts[i : i + ahead + 1].max()) for i in range(len(counts))]
    begin_s = contest.scenario.requests[0].arrival_s
    return [(begin_s + i * BIN_S, count) for i, count in enumerate(early)]
