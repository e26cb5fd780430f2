from __future__ import annotations

import random
from pathlib import Path

import pytest

from controlplane.replay.capacity import fleet_rate, ideal_cached_tokens
from controlplane.replay.cells import BLOCK_TOKENS, UNEQUAL, WORKLOADS, Cell, Course, scenario_of
from controlplane.replay.generate import Workload, generate, write
from controlplane.replay.report import Targets, ideal_hit_rate
from workers.sim.timing import A100, H100

COURSE = Course(requests=200, workers=4, targets=Targets(5_000, 100))


@pytest.mark.parametrize("trace", list(WORKLOADS))
def test_a_cell_comes_at_its_share_of_what_its_fleet_can_carry(trace: str) -> None:
    half, full = (scenario_of(COURSE, Cell(trace, load)) for load in (0.5, 1.0))
    assert len(half.requests) == len(full.requests) == COURSE.requests
    cached = ideal_cached_tokens(full.names, BLOCK_TOKENS)
    capacity = fleet_rate(full.requests, cached, full.profiles, COURSE.targets.tpot_ms)
    span_s = full.requests[-1].arrival_s - full.requests[0].arrival_s
    assert COURSE.requests / span_s == pytest.approx(capacity)
    assert half.requests[-1].arrival_s == pytest.approx(2 * full.requests[-1].arrival_s)


def test_traces_are_what_they_are_called() -> None:
    of = {trace: scenario_of(COURSE, Cell(trace, 0.8)) for trace in WORKLOADS}
    ideal = {trace: ideal_hit_rate(scenario.names) for trace, scenario in of.items()}
    assert ideal["no reuse"] == ideal["1:32 lengths"] == 0
    assert min(ideal["shared prefix"], ideal["sibling bursts"]) > 0.6
    assert of["no reuse"].profiles == (H100,) * 4
    assert of[UNEQUAL].profiles == (H100, H100, A100, A100)


def test_a_recorded_trace_comes_first_and_is_brought_to_its_load(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(generate(Workload(conversations=50), random.Random(1)), path)
    course = Course(requests=40, workers=2, targets=COURSE.targets, recorded=path)
    assert course.chosen(()) == ("recorded", *WORKLOADS)
    assert len(scenario_of(course, Cell("recorded", 0.8)).requests) == 40
    with pytest.raises(ValueError, match="there is no trace 'recorded'; there are: no reuse"):
        COURSE.chosen(["recorded"])
