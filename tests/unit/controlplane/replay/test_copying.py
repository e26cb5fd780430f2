"""Cached prefixes that move in virtual time, by the coordinator's own decisions."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from controlplane.replay.arms import arm
from controlplane.replay.fleet import MODEL
from controlplane.replay.generate import Workload, generate
from controlplane.replay.handover import Link
from controlplane.replay.names import PromptNamer
from controlplane.replay.report import Run, Status, Targets
from controlplane.replay.simulate import Scenario, Simulation
from proto.hashing import BlockHasher, Scope
from workers.sim.timing import H100

LONG = Workload(
    conversations=60,
    rate=2.0,
    turns=1.5,
    think_s=5.0,
    message_tokens=200,
    output_tokens=50,
    system_prompts=12,
    system_blocks_min=16,
    system_blocks_max=32,
)


def scenario(workload: Workload) -> Scenario:
    requests = list(generate(workload, random.Random(1)))
    namer = PromptNamer(BlockHasher(b"replay", Scope(MODEL), 64))
    return Scenario(
        requests=requests,
        names=list(namer.names(requests)),
        profiles=(H100,) * 4,
        block_tokens=64,
        targets=Targets(5000, 100),
    )


def play(scene: Scenario, text: str) -> tuple[Run, dict[str, int]]:
    simulation = Simulation(scene, arm(text), lambda: None)
    run = simulation.run()
    copying = simulation._copying
    return run, {} if copying is None else dict(copying.outcomes)


def hits(run: Run) -> float:
    assert all(each.status is Status.COMPLETED for each in run.outcomes)
    return sum(each.cached_blocks for each in run.outcomes)


def ttft_ms(run: Run) -> float:
    return sum(each.ttft_ms or 0.0 for each in run.outcomes) / len(run.outcomes)


def test_kr5_long_prefixes_are_moved_and_not_computed_again() -> None:
    scene = scenario(LONG)
    (plain, _), (moved, outcomes) = play(scene, "round_robin"), play(scene, "round_robin:moves=1")
    assert outcomes["fetch moved"] > 10
    assert hits(moved) > 1.2 * hits(plain)
    assert ttft_ms(moved) < 0.8 * ttft_ms(plain)


def test_over_a_link_that_is_too_slow_nothing_is_moved_once_that_is_known() -> None:
    """A few requests wait in vain until then, none of them for a second."""
    scene = replace(scenario(LONG), link=Link(bytes_per_s=0.05e9))
    (plain, _), (moved, outcomes) = play(scene, "round_robin"), play(scene, "round_robin:moves=1")
    assert outcomes["fetch dearer"] > outcomes["fetch moved"]
    lost_ms = (ttft_ms(moved) - ttft_ms(plain)) * len(plain.outcomes)
    assert lost_ms < 1000 * outcomes["fetch moved"] < 5000


def test_a_hot_prefix_is_copied_before_its_holder_is_full() -> None:
    hot = replace(LONG, system_prompts=1, rate=6.0)
    _, outcomes = play(scenario(hot), "kv:moves=1:replicate_per_s=1")
    assert outcomes["replicate moved"] >= 1


def test_equal_arguments_give_equal_runs() -> None:
    scene = scenario(LONG)
    assert play(scene, "kv:moves=1") == play(scene, "kv:moves=1")


def test_a_split_fleet_and_engines_that_tell_nothing_have_no_moves_in_a_replay() -> None:
    for text in ("kv:moves=1:roles=1P1D", "kv:moves=1:knowledge=approximate"):
        with pytest.raises(ValueError, match="moves"):
            arm(text)
