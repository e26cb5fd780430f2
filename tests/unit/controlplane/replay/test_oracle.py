from __future__ import annotations

import random
from dataclasses import replace

from controlplane.replay.cells import Cell, Course, scenario_of
from controlplane.replay.foresight import Job, Sight, harm
from controlplane.replay.generate import generate
from controlplane.replay.report import Status, Targets, policy_report
from tests.unit.controlplane.replay.test_simulate import SHARING, run, scenario, sharing
from workers.sim.engine import Load
from workers.sim.timing import H100, LAPTOP

TARGETS = Targets(ttft_ms=5_000, tpot_ms=100)
JOB = Job(prompt_tokens=4_000, new_tokens=4_000, output_tokens=200, names=[])


def load(running: int = 0, waiting: int = 0, queued_tokens: int = 0, kv_tokens: int = 0) -> Load:
    return Load(
        running=running,
        waiting=waiting,
        queued_prefill_tokens=queued_tokens,
        decode_kv_tokens=kv_tokens,
        used_blocks=0,
        cached_blocks=0,
        total_blocks=10_000,
        queried_tokens=0,
        cached_tokens=0,
        preemptions=0,
    )


IDLE = Sight(now_s=100.0, profile=H100, load=load(), steps=1_000, queued=[], streams=[])


def streams(count: int, began_s: float, tokens_left: int, profile_load: Load) -> Sight:
    """`count` answers of 201 tokens, of which some are left."""
    first_step = IDLE.steps - (200 - tokens_left)
    one = replace(JOB, output_tokens=201, first_token_s=began_s, first_step=first_step)
    return replace(IDLE, load=profile_load, streams=[one] * count)


def test_less_to_compute_is_less_harm() -> None:
    cached = replace(JOB, new_tokens=40)
    assert harm(IDLE, cached, TARGETS) < harm(IDLE, JOB, TARGETS)


def test_a_quicker_engine_does_less_harm() -> None:
    slower = replace(IDLE, profile=replace(H100, cost=replace(H100.cost, prefill_token_ms=0.2)))
    assert harm(IDLE, JOB, TARGETS) < harm(slower, JOB, TARGETS)


def test_a_queue_that_takes_longer_than_the_target_breaks_the_promise() -> None:
    queue = [replace(JOB, prompt_tokens=20_000, new_tokens=20_000)] * 5
    crowded = replace(IDLE, load=load(waiting=5, queued_tokens=100_000), queued=queue)
    assert harm(crowded, JOB, TARGETS) > 0.9 > harm(IDLE, JOB, TARGETS)


def test_queued_prompts_count_without_what_will_be_found_cached() -> None:
    queue = [replace(JOB, prompt_tokens=20_000, new_tokens=100)] * 5
    crowded = replace(IDLE, load=load(waiting=5, queued_tokens=100_000), queued=queue)
    assert harm(crowded, JOB, TARGETS) < 0.9


def test_harm_is_done_to_answers_at_the_edge_and_not_to_those_lost_or_safe() -> None:
    few = load(running=20, kv_tokens=80_000)
    # Of 20 s for 200 tokens: nearly used up, used up long ago, and hardly touched.
    edge = harm(
        streams(20, began_s=IDLE.now_s - 18.5, tokens_left=5, profile_load=few), JOB, TARGETS
    )
    lost = harm(
        streams(20, began_s=IDLE.now_s - 90.0, tokens_left=5, profile_load=few), JOB, TARGETS
    )
    safe = harm(
        streams(20, began_s=IDLE.now_s - 1.0, tokens_left=150, profile_load=few), JOB, TARGETS
    )
    assert edge > 1
    assert max(lost, safe) < 0.1


def test_what_is_about_to_be_computed_is_found_there() -> None:
    # Sixteen ask the same at once. Who does not see what is coming has it computed everywhere.
    course = Course(requests=128, workers=8, targets=TARGETS)
    bursts = scenario_of(course, Cell("sibling bursts", 0.8))
    seen, unseen = run(bursts, "oracle"), run(bursts, "round_robin")
    hit_rates = [policy_report(r, 0.0, TARGETS).hit_rate for r in (seen, unseen)]
    assert hit_rates[0] > hit_rates[1] + 0.2


def test_knowing_all_serves_more_within_the_targets() -> None:
    crowd = scenario(list(generate(replace(SHARING, rate=12.0), random.Random(3))))
    goodput = {
        name: policy_report(run(crowd, name), 0.0, crowd.targets).goodput
        for name in ("oracle", "kv", "least_loaded", "round_robin")
    }
    assert goodput["oracle"] > max(goodput["kv"], goodput["least_loaded"], goodput["round_robin"])


def test_the_oracle_survives_preemptions_and_prompts_that_fit_nowhere() -> None:
    small = replace(sharing(), blocks=80, profiles=(LAPTOP,) * 2)
    statuses = [outcome.status for outcome in run(small, "oracle").outcomes]
    assert {Status.COMPLETED, Status.FAILED} == set(statuses)
