"""Unequal and changing hardware: what a router makes of it (HW5, HW7, SD9)."""

from __future__ import annotations

import random

from controlplane.capacity import SAMPLES_MIN, WARM_UP_S
from controlplane.replay.arms import arm
from controlplane.replay.cells import UNEQUAL, Cell, Course, scenario_of
from controlplane.replay.report import Targets, policy_report
from controlplane.replay.simulate import simulate
from controlplane.router.core import RouterCore
from controlplane.router.settings import RouterSettings
from proto.ids import WorkerId
from proto.load import LoadReport, StepSums
from tests.support.router_core import ask, chosen, record

TARGETS = Targets(5_000.0, 100.0)
COURSE = Course(requests=400, workers=4, targets=TARGETS)


def report(worker: str, steps: StepSums) -> LoadReport:
    return LoadReport(WorkerId(worker), 0, 0, 0, 0, 0, 1_000, 0, 0, 0, steps=steps)


def taught(core: RouterCore, worker: str = "a", accept_length: float = 1.0) -> float:
    """Let the worker report steps until its speed is known; returns when."""
    rng, now_s = random.Random(1), 0.0
    core.observe_load(report(worker, StepSums()), now_s)
    now_s += WARM_UP_S
    for _ in range(2 * SAMPLES_MIN):
        steps, prefill, batch = rng.randint(1, 20), rng.randint(1, 4_000), rng.randint(1, 200)
        kv_tokens = rng.randint(1, 100_000)
        busy_ms = 30 * steps + 0.05 * prefill + 0.2 * batch + 2e-4 * kv_tokens
        accepted = round(batch * (accept_length - 1))
        sums = StepSums(steps, prefill, 0.0, batch, kv_tokens, busy_ms, accepted, batch)
        core.observe_load(report(worker, sums), now_s)
        now_s += 0.25
    return now_s


def values(core: RouterCore, now_s: float) -> dict[str, float]:
    """What the policy made of its first candidate."""
    return chosen(ask(core, now_s=now_s, explain=True)).terms[0].values


def test_hw5_a_new_engine_version_is_not_judged_by_what_the_old_one_did() -> None:
    core = RouterCore(RouterSettings(policy="slo"), "r", random.Random(0))
    core.worker_joined(record("a", engine="vllm", engine_version="0.11"))
    now_s = taught(core)
    assert "ttft_ms" in values(core, now_s)
    core.worker_joined(record("a", engine="vllm", engine_version="0.12", incarnation=2))
    assert values(core, now_s) == {}
    core.worker_joined(record("a", engine="vllm", engine_version="0.11", incarnation=3))
    assert "ttft_ms" in values(core, now_s)


def test_sd9_the_accept_length_of_reports_sets_the_pace_that_is_expected() -> None:
    plain = RouterCore(RouterSettings(policy="slo"), "r", random.Random(0))
    drafting = RouterCore(RouterSettings(policy="slo"), "r", random.Random(0))
    paces = []
    for core, length in ((plain, 1.0), (drafting, 2.5)):
        core.worker_joined(record("a"))
        now_s = taught(core, accept_length=length)
        paces.append(values(core, now_s)["tpot_ms"])
    assert paces[0] / paces[1] > 2.3


def test_hw7_slow_workers_are_neither_starved_nor_flooded() -> None:
    """Half of the fleet is A100 and half H100, at 80 % of what they can carry together. By turns,
    the slow half is given as many requests and breaks their promises; by speed, both halves are
    about as busy."""
    scenario = scenario_of(COURSE, Cell(UNEQUAL, 0.8))
    by_speed = simulate(scenario, arm("slo", TARGETS), lambda: None)
    by_turns = simulate(scenario, arm("round_robin", TARGETS), lambda: None)
    fast, slow = sum(by_speed.busy_each[:2]), sum(by_speed.busy_each[2:])
    assert 0.5 < slow / fast < 1.5
    kept = [policy_report(run, 0.0, TARGETS).goodput for run in (by_speed, by_turns)]
    assert kept[0] > kept[1] + 0.05
