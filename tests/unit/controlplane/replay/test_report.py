from __future__ import annotations

import pytest

from controlplane.replay.names import PromptNamer
from controlplane.replay.report import (
    Distribution,
    Outcome,
    Run,
    Status,
    Targets,
    distribution,
    ideal_hit_rate,
    policy_report,
)
from controlplane.replay.trace import TraceRequest
from proto.hashing import BlockHasher, Scope

TARGETS = Targets(ttft_ms=100, tpot_ms=10)


def names_of(*prompts: tuple[int, tuple[int, ...]], block: int = 256) -> float:
    requests = [TraceRequest(0.0, tokens, 1, ids) for tokens, ids in prompts]
    return ideal_hit_rate(list(PromptNamer(BlockHasher(b"k", Scope("m"), block)).names(requests)))


def test_ideal_counts_blocks_with_a_whole_prefix_seen_before() -> None:
    # Blocks of 256: A = (1, 2), B = (1, 3), C = (2, 1): same text elsewhere is another block.
    assert names_of((1024, (1, 2))) == 0
    assert names_of((1024, (1, 2)), (1024, (1, 2))) == 4 / 8
    assert names_of((1024, (1, 2)), (1024, (1, 3))) == 2 / 8
    assert names_of((1024, (1, 2)), (1024, (2, 1))) == 0
    # 700 tokens are two full blocks, of which a longer prompt finds both.
    assert names_of((700, (1, 2)), (1024, (1, 2))) == 2 / 6
    assert names_of((100, (1,)), (100, (1,))) == 0
    assert names_of() == 0


def test_figures_add_up() -> None:
    outcomes = [
        Outcome(Status.COMPLETED, 50.0, 5.0, prompt_blocks=10, cached_blocks=4),
        Outcome(Status.COMPLETED, 100.0, None, prompt_blocks=10, cached_blocks=0),
        Outcome(Status.COMPLETED, 101.0, 5.0, prompt_blocks=0),
        Outcome(Status.COMPLETED, 50.0, 10.5, prompt_blocks=20, cached_blocks=20),
        Outcome(Status.REJECTED),
        Outcome(Status.FAILED),
    ]
    report = policy_report(Run("kv", outcomes, busy=0.5), ideal=0.7, targets=TARGETS)
    assert (report.completed, report.rejected, report.failed) == (4, 1, 1)
    assert report.ttft_ms.mean == pytest.approx(301 / 4)
    assert report.tpot_ms.mean == pytest.approx(20.5 / 3)
    assert report.hit_rate == 24 / 40
    assert report.goodput == 2 / 6
    assert (report.ideal_hit_rate, report.busy) == (0.7, 0.5)


def test_where_nothing_was_served_there_is_nothing_to_measure() -> None:
    report = policy_report(Run("kv", [Outcome(Status.REJECTED)], None), 0.0, TARGETS)
    assert (report.ttft_ms, report.tpot_ms) == (Distribution(), Distribution())
    assert (report.hit_rate, report.goodput, report.busy) == (0, 0, None)


def test_percentiles_lie_between_neighbours() -> None:
    assert distribution([float(v) for v in range(1, 102)]) == Distribution(51.0, 51.0, 91.0, 100.0)
