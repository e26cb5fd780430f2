"""Planners compared: one trace, and arms that decide how many workers there are.

Two arms are found and not given, by replaying the trace again and again:

- `static`, provisioned for the peak: the smallest fleet that never changes and keeps the goal in
  the busiest five minutes.
- `oracle`, with hindsight: of all schedules of two families, those that keep the goal over the
  whole trace with the fewest worker-hours. One family is the fleets that never change; the other
  follows the work that is going to arrive, smoothed over one or over three minutes, times a factor,
  each worker begun early enough to be ready in time.

A request that the largest fleet allowed cannot serve in time either is out of everybody's reach.
If so many are that the goal cannot be kept at all, the goal is that share of what can be reached.
Every arm begins with the static fleet's size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec
import numpy as np

from controlplane.planner.settings import PlannerSettings
from controlplane.replay.arms import arm
from controlplane.replay.elastic import Elastic, ElasticRun, Scaler, simulate_elastic
from controlplane.replay.parallel import run_all
from controlplane.replay.report import Status, Targets, within
from controlplane.replay.scalers import Dynamo, Hpa, Planner, Queue, Schedule
from controlplane.replay.simulate import Scenario
from workers.sim.timing import attention_pairs

ARMS = ("planner", "static", "hpa", "queue", "dynamo", "oracle")
BASELINES = ("static", "hpa", "queue", "dynamo")
BUSY_WINDOW_S = 300.0
BUSY_REQUESTS_MIN = 50
BIN_S = 15.0
SMOOTHED_S = (60.0, 180.0)
FACTORS = 6
"""Halvings when a schedule's factor is sought."""

OnProgress = Callable[[str, int], None]


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


class ArmReport(msgspec.Struct, frozen=True):
    """The figures of one arm."""

    attainment: float
    """Share of all requests that met both targets."""
    worker_hours: float
    """From the moment a worker is asked for until it has gone."""
    cost: float
    scale_actions: int
    failed: int
    ttft_met: float
    tpot_met: float
    workers_min: int
    workers_max: int


class PlanReport(msgspec.Struct, frozen=True):
    """Everything, as `--json` writes it."""

    arms: dict[str, ArmReport]
    trace: str
    requests: int
    ttft_ms: float
    tpot_ms: float
    goal: float
    reachable: float
    """Attainment of the largest fleet allowed."""
    settings: dict[str, str | int | float]


def compete(
    contest: Contest, arms: Sequence[str], on_progress: OnProgress
) -> tuple[dict[str, ElasticRun], float, float]:
    """Every arm's run; what can be reached; and the goal that follows from it."""
    most = contest.elastic.most
    [ceiling] = _fixed(contest, [most], on_progress)
    reachable = attainment(ceiling, contest.targets)
    hopeless = math.ceil((1 - contest.goal + 1 - reachable) * len(contest.scenario.requests))
    searching = replace(contest, elastic=replace(contest.elastic, misses_max=hopeless))
    goal = contest.goal * min(1.0, reachable if reachable < contest.goal else 1.0)
    peak, known = _static_peak(searching, ceiling, on_progress)
    contest = replace(contest, elastic=replace(contest.elastic, first=peak))
    makers: dict[str, Callable[[], Scaler]] = {
        "planner": partial(Planner, contest.settings),
        "hpa": Hpa,
        "queue": Queue,
        "dynamo": partial(Dynamo, contest.targets),
    }
    chosen = [name for name in arms if name in makers]
    jobs = [
        partial(
            simulate_elastic,
            contest.scenario,
            arm(contest.policy, contest.targets),
            contest.elastic,
            makers[name],
        )
        for name in chosen
    ]
    came = run_all(jobs, lambda job, ended: on_progress(chosen[job], ended))
    runs = dict(zip(chosen, came, strict=True))
    runs["static"] = known[peak]
    if "oracle" in arms:
        searching = replace(searching, elastic=replace(searching.elastic, first=peak))
        runs["oracle"] = _oracle(searching, known, goal, on_progress)
    return {name: runs[name] for name in arms if name in runs}, reachable, goal


def attainment(run: ElasticRun, targets: Targets) -> float:
    """Share of all requests that met both targets."""
    outcomes = run.run.outcomes
    return sum(within(each, targets) for each in outcomes) / max(1, len(outcomes))


def arm_report(run: ElasticRun, targets: Targets) -> ArmReport:
    """The figures of one run."""
    outcomes = run.run.outcomes
    count = max(1, len(outcomes))
    done = [each for each in outcomes if each.status is Status.COMPLETED]
    return ArmReport(
        attainment=attainment(run, targets),
        worker_hours=run.worker_s / 3600,
        cost=run.cost,
        scale_actions=run.scale_actions,
        failed=count - len(done),
        ttft_met=sum(o.ttft_ms <= targets.ttft_ms for o in done) / count,
        tpot_met=sum((o.tpot_ms or 0.0) <= targets.tpot_ms for o in done) / count,
        workers_min=min(ready for _, ready, _ in run.timeline),
        workers_max=max(ready for _, ready, _ in run.timeline),
    )


def _run_schedules(
    contest: Contest,
    schedules: Sequence[tuple[str, Sequence[tuple[float, int]]]],
    on_progress: OnProgress,
) -> list[ElasticRun]:
    jobs = []
    for name, steps in schedules:
        elastic = replace(contest.elastic, first=steps[0][1])
        jobs.append(
            partial(
                simulate_elastic,
                contest.scenario,
                arm(contest.policy, contest.targets),
                elastic,
                partial(Schedule, name, steps),
            )
        )
    return run_all(jobs, lambda job, ended: on_progress(schedules[job][0], ended))


def _fixed(contest: Contest, sizes: Sequence[int], on_progress: OnProgress) -> list[ElasticRun]:
    schedules = [(f"static {size}", [(0.0, size)]) for size in sizes]
    return _run_schedules(contest, schedules, on_progress)


def _static_peak(
    contest: Contest, ceiling: ElasticRun, on_progress: OnProgress
) -> tuple[int, dict[int, ElasticRun]]:
    """The smallest fixed fleet that keeps the goal in every busy window, and all that were tried;
    the largest allowed if none does."""
    least, most = contest.elastic.least, contest.elastic.most
    known = {most: ceiling}

    def keeps(size: int) -> bool:
        if size not in known:
            [known[size]] = _fixed(contest, [size], on_progress)
        return _worst_window(contest, known[size], ceiling) >= contest.goal

    busiest = float(work_to_come(contest.scenario, BUSY_WINDOW_S).max())
    low, high = max(least, math.floor(busiest)) - 1, most
    guess = math.ceil(2 * busiest)
    while high - low > 1:
        guess = max(low + 1, min(high - 1, guess))
        low, high = (low, guess) if keeps(guess) else (guess, high)
        guess = (low + high) // 2 if high < most else math.ceil(1.3 * guess)
    return high, known


def _worst_window(contest: Contest, run: ElasticRun, ceiling: ElasticRun) -> float:
    """The lowest attainment of any five minutes, of the requests within reach."""
    targets, requests = contest.targets, contest.scenario.requests
    good: dict[int, list[bool]] = {}
    pairs = zip(requests, run.run.outcomes, ceiling.run.outcomes, strict=True)
    for request, outcome, best in pairs:
        if within(best, targets):
            window = int(request.arrival_s // BUSY_WINDOW_S)
            good.setdefault(window, []).append(within(outcome, targets))
    shares = [sum(each) / len(each) for each in good.values() if len(each) >= BUSY_REQUESTS_MIN]
    return min(shares, default=1.0)


def _oracle(
    contest: Contest, known: dict[int, ElasticRun], goal: float, on_progress: OnProgress
) -> ElasticRun:
    """The schedule with the fewest worker-hours that keeps the goal."""
    targets = contest.targets
    holding = [run for run in known.values() if attainment(run, targets) >= goal]
    work = {f"oracle {s:g}": work_to_come(contest.scenario, s) for s in SMOOTHED_S}
    factors = dict.fromkeys(work, (1.0, 4.0))
    for _ in range(FACTORS):
        middles = {name: (low + high) / 2 for name, (low, high) in factors.items()}
        schedules = [(name, _schedule(contest, work[name] * middles[name])) for name in work]
        for run in _run_schedules(contest, schedules, on_progress):
            low, high = factors[run.name]
            if attainment(run, targets) >= goal:
                holding.append(run)
                factors[run.name] = low, middles[run.name]
            else:
                factors[run.name] = middles[run.name], high
    best = min(holding, key=lambda run: run.worker_s)
    return replace(best, name="oracle")


def work_to_come(scenario: Scenario, smoothed_s: float) -> np.ndarray:
    """Engines' worth of work in each bin of the trace: what its prompts and answers cost an engine
    that is as busy as it may be, at the time that they are computed."""
    profile = scenario.profiles[0]
    cost, tpot_ms = profile.cost, scenario.targets.tpot_ms
    room = 1 - cost.decode_base_ms / tpot_ms
    seen: set[int] = set()
    span_s = scenario.requests[-1].arrival_s + 120.0
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
        begin = int(request.arrival_s / BIN_S)
        work[begin] += prompt_ms
        answer_s = request.output_tokens * tpot_ms / 2 / 1000
        end = min(len(work) - 1, int((request.arrival_s + answer_s) / BIN_S))
        work[begin : end + 1] += answer_ms / (end - begin + 1)
    workers = work / 1000 / BIN_S / room
    width = max(1, int(smoothed_s / BIN_S)) | 1
    padded = np.pad(workers, width // 2, mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _schedule(contest: Contest, workers: np.ndarray) -> list[tuple[float, int]]:
    """Begun early enough: what is needed from now until a worker that is asked for now is ready."""
    elastic = contest.elastic
    ahead = int(np.ceil(elastic.start_s / BIN_S))
    counts = np.clip(np.ceil(workers), elastic.least, elastic.most).astype(int)
    early = [int(counts[i : i + ahead + 1].max()) for i in range(len(counts))]
    begin_s = contest.scenario.requests[0].arrival_s
    return [(begin_s + i * BIN_S, count) for i, count in enumerate(early)]
