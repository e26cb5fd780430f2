"""A split fleet in virtual time, through the real coordinator, beside one that does it all."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from controlplane.replay.arms import arm
from controlplane.replay.fleet import MODEL
from controlplane.replay.generate import Workload, generate
from controlplane.replay.handover import Link
from controlplane.replay.names import PromptNamer
from controlplane.replay.report import Run, Status, Targets, policy_report, weighted_distribution
from controlplane.replay.simulate import Scenario, simulate
from controlplane.transfer.cost import Choice
from controlplane.transfer.settings import TransferSettings
from proto.hashing import BlockHasher, Scope
from workers.sim.timing import H100

WORKLOAD = Workload(
    conversations=60,
    rate=1.0,
    turns=2.0,
    think_s=5.0,
    message_tokens=300,
    output_tokens=200,
    documents_rate=0.4,
    context_tokens=40_000,
)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    requests = list(generate(WORKLOAD, random.Random(1)))
    namer = PromptNamer(BlockHasher(b"replay", Scope(MODEL), 64))
    return Scenario(
        requests=requests,
        names=list(namer.names(requests)),
        profiles=(H100,) * 4,
        block_tokens=64,
        targets=Targets(5000, 100),
        transfer=TransferSettings(choice=Choice.REMOTE),
    )


def play(scenario: Scenario, text: str) -> Run:
    return simulate(scenario, arm(text), lambda: None)


def itl_p99_ms(run: Run) -> float:
    found = weighted_distribution(run.gaps).p99
    assert found is not None
    return found


def test_dg5_long_prompts_do_not_hold_up_who_is_being_answered(scenario: Scenario) -> None:
    whole, parted = play(scenario, "kv"), play(scenario, "kv:roles=2P2D")
    for run in (whole, parted):
        assert {o.status for o in run.outcomes} == {Status.COMPLETED}
    assert itl_p99_ms(parted) < itl_p99_ms(whole) / 1.5


def test_equal_runs(scenario: Scenario) -> None:
    assert play(scenario, "kv:roles=2P2D") == play(scenario, "kv:roles=2P2D")


def test_dg10_a_slow_link_costs_time_to_first_token_and_no_pace(scenario: Scenario) -> None:
    slow = replace(scenario, link=Link(bytes_per_s=4e9))
    quick, late = play(scenario, "kv:roles=2P2D"), play(slow, "kv:roles=2P2D")
    targets = scenario.targets
    fast_ms, slow_ms = (policy_report(run, 0, targets).ttft_ms.p50 for run in (quick, late))
    assert fast_ms is not None and slow_ms is not None and slow_ms > fast_ms
    assert itl_p99_ms(late) < itl_p99_ms(play(scenario, "kv"))


def test_what_does_not_fit_is_failed_and_nothing_is_left(scenario: Scenario) -> None:
    small = replace(scenario, blocks=400)
    run = play(small, "kv:roles=2P2D")
    failed = [o for o in run.outcomes if o.status is Status.FAILED]
    assert failed and len(failed) < len(run.outcomes)
    assert all("do not fit a cache" in each.detail for each in failed)


def test_a_split_fleet_cannot_be_guessed_about() -> None:
    with pytest.raises(ValueError, match="needs knowledge=events"):
        arm("kv:knowledge=approximate:roles=2P2D")
    with pytest.raises(ValueError, match="somebody must decode"):
        arm("kv:roles=2P")


def test_what_waits_beyond_its_lease_is_computed_again(scenario: Scenario) -> None:
    choked = replace(scenario, link=Link(bytes_per_s=0.5e9))
    assert {o.status for o in play(choked, "kv:roles=2P2D").outcomes} == {Status.COMPLETED}
