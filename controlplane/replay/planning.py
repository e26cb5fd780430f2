"""Planners compared: one trace, and arms that decide how many workers there are.

Two arms are found and not given:

- `static`, provisioned for the peak (`provision`): a fleet that never changes and should serve the
  busiest minute, and has been tested: where it does not keep the goal over the whole trace, engines
  are added until it does.
- `oracle`: of the schedules that were found with hindsight (`hindsight`), the one that keeps the
  goal over the whole trace with the fewest worker-hours.

A request that the largest fleet allowed cannot serve in time either is out of everybody's reach.
If so many are that the goal cannot be kept at all, the goal is that share of what can be reached.
Every arm begins with the static fleet's size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from controlplane.replay.arms import arm
from controlplane.replay.elastic import ElasticRun, Scaler, simulate_elastic
from controlplane.replay.hindsight import Contest, attainment, fixed, searches
from controlplane.replay.parallel import Job, run_all
from controlplane.replay.provision import provisioned
from controlplane.replay.report import Status, Targets
from controlplane.replay.scalers import Dynamo, Hpa, Planner, Queue

ARMS = ("planner", "static", "hpa", "queue", "dynamo", "oracle")
OnProgress = Callable[[str, int], None]


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
    first, most, targets = contest.elastic.least, contest.elastic.most, contest.targets
    peak = max(first, provisioned(contest.scenario, contest.settings, contest.goal, most))
    ceiling, static = _side_by_side(
        {f"{size} engines": partial(fixed, contest, size) for size in (most, peak)}, on_progress
    )
    reachable = attainment(ceiling, targets)
    goal = contest.goal * min(1.0, reachable if reachable < contest.goal else 1.0)
    while attainment(static, targets) < goal and peak < most:
        peak += 1
        [static] = _side_by_side({f"{peak} engines": partial(fixed, contest, peak)}, on_progress)
    contest = replace(contest, elastic=replace(contest.elastic, first=peak))
    makers: dict[str, Callable[[], Scaler]] = {
        "planner": partial(Planner, contest.settings),
        "hpa": Hpa,
        "queue": Queue,
        "dynamo": partial(Dynamo, targets),
    }
    jobs: dict[str, Job[ElasticRun]] = {
        name: partial(_arm_run, contest, makers[name]) for name in arms if name in makers
    }
    if "oracle" in arms:
        jobs |= searches(contest, goal)
    came = _side_by_side(jobs, on_progress)
    runs = {"static": static}
    holding = [static]
    for name, run in zip(jobs, came, strict=True):
        if name in makers:
            runs[name] = run
        else:
            holding.append(run)
    best = min(
        (run for run in holding if attainment(run, targets) >= goal),
        key=lambda run: run.worker_s,
        default=ceiling,
    )
    runs["oracle"] = replace(best, name="oracle")
    return {name: runs[name] for name in arms}, reachable, goal


def _arm_run(
    contest: Contest, make_scaler: Callable[[], Scaler], on_outcome: Callable[[], None]
) -> ElasticRun:
    policy = arm(contest.policy, contest.targets)
    return simulate_elastic(contest.scenario, policy, contest.elastic, make_scaler, on_outcome)


def _side_by_side(jobs: Mapping[str, Job[ElasticRun]], on_progress: OnProgress) -> list[ElasticRun]:
    names = list(jobs)
    return run_all(list(jobs.values()), lambda job, ended: on_progress(names[job], ended))


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
