"""Fleets that grow and shrink in virtual time, and those who decide on them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import msgspec
import pytest

from controlplane.cli.plan import PlanSettings, contest_of
from controlplane.replay.arms import arm
from controlplane.replay.elastic import ElasticRun, simulate_elastic
from controlplane.replay.hindsight import Contest, attainment, searches
from controlplane.replay.planning import ARMS, arm_report, compete
from controlplane.replay.provision import provisioned
from controlplane.replay.report import Status
from controlplane.replay.scalers import Schedule
from controlplane.replay.shapes import shaped

SETTINGS = PlanSettings(replay="noise", most=6)


def contest(count: int, name: str = "noise") -> Contest:
    """The first requests of a made-up hour."""
    return contest_of(SETTINGS, shaped(name)[:count])


def scheduled(on: Contest, *steps: tuple[float, int]) -> ElasticRun:
    """So many engines from each time on."""
    elastic = replace(on.elastic, first=steps[0][1])
    make = partial(Schedule, "s", steps)
    return simulate_elastic(on.scenario, arm("slo", on.targets), elastic, make, lambda: None)


def test_as15_engines_that_go_finish_what_they_have_and_nobody_fails() -> None:
    on = contest(60)
    begin_s = on.scenario.requests[0].arrival_s
    middle_s = on.scenario.requests[30].arrival_s
    run = scheduled(on, (begin_s, 4), (middle_s, 1))
    assert {outcome.status for outcome in run.run.outcomes} == {Status.COMPLETED}
    ready = [(time_s, ready) for time_s, ready, _ in run.timeline]
    gone = [(time_s, total) for time_s, _, total in run.timeline]
    closed_s = next(time_s for time_s, count in ready if count == 1)
    left_s = next(time_s for time_s, total in gone if total == 1 and time_s >= closed_s)
    assert closed_s < left_s, "they were chosen no more, and went on"


def test_a_new_engine_costs_from_the_start_and_serves_when_it_is_ready() -> None:
    on = contest(60)
    begin_s = on.scenario.requests[0].arrival_s
    run = scheduled(on, (begin_s, 1), (begin_s + 10, 3))
    asked_s = next(time_s for time_s, _, total in run.timeline if total == 3)
    ready_s = next(time_s for time_s, ready, _ in run.timeline if ready == 3)
    assert ready_s - asked_s == pytest.approx(SETTINGS.start_up_s)


def test_provisioning_follows_the_busiest_minute() -> None:
    quiet, flash = shaped("flash")[:800], shaped("flash")
    sizes = []
    for requests in (quiet, flash):
        on = contest_of(SETTINGS, requests)
        sizes.append(provisioned(on.scenario, on.settings, on.goal, 40))
    assert 2 <= sizes[0] <= sizes[1] / 2


def test_hindsight_of_a_trace_that_begins_late_is_that_of_one_that_begins_at_once() -> None:
    def followed(late_s: float) -> ElasticRun:
        requests = [
            msgspec.structs.replace(each, arrival_s=each.arrival_s + late_s)
            for each in shaped("noise")[:90]
        ]
        on = contest_of(SETTINGS, requests)
        return searches(on, on.goal)["oracle, 60 s"](lambda: None)

    at_once, late = followed(0.0), followed(1_800.0)
    assert max(ready for _, ready, _ in at_once.timeline) > 1
    assert late.worker_s == pytest.approx(at_once.worker_s)
    assert late.scale_actions == at_once.scale_actions


def test_the_static_fleet_alone_may_be_asked_for() -> None:
    runs, _, _ = compete(contest(60), ["static"], lambda *_: None)
    assert list(runs) == ["static"]


def test_every_arm_is_run_and_the_oracle_costs_least_of_those_that_keep_the_goal() -> None:
    on = contest(90)
    runs, reachable, goal = compete(on, ARMS, lambda *_: None)
    assert list(runs) == list(ARMS)
    assert reachable >= goal > 0.5
    reports = {name: arm_report(run, on.targets) for name, run in runs.items()}
    assert all(report.failed == 0 for report in reports.values())
    assert reports["oracle"].attainment >= goal
    assert reports["oracle"].worker_hours <= reports["static"].worker_hours
    assert reports["static"].scale_actions == 0
    assert attainment(runs["static"], on.targets) >= goal
    told = msgspec.json.decode(msgspec.json.encode(reports))
    assert told["planner"].keys() >= {
        "attainment", "worker_hours", "cost", "scale_actions", "failed"
    }  # fmt: skip
