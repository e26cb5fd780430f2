from __future__ import annotations

from itertools import pairwise

import pytest

from controlplane.replay.cells import Cell, Course, scenario_of
from controlplane.replay.report import Status, Targets, policy_report
from tests.unit.controlplane.replay.test_simulate import TARGETS, run, sharing

LATE = tuple(f"kv:coming_s=0:kv_delay_s={delay}" for delay in ("0", "0.1", "1", "10", "1e6"))
"""Without guesses, which would make up for much of what is not heard."""
LOSSY = ("kv", "kv:kv_loss=0.01", "kv:kv_loss=0.1")
SLACK = 0.02


def test_the_later_the_news_the_fewer_hits_and_never_a_cliff() -> None:
    some = sharing()
    hits = [policy_report(run(some, name), 0.0, TARGETS).hit_rate for name in LATE]
    assert all(later <= sooner + SLACK for sooner, later in pairwise(hits))
    prompt, _, _, ten_seconds, deaf = hits
    assert prompt - deaf > 0.15
    # Conversations go on after some seconds: who hears within a second misses next to nothing.
    assert hits[2] > prompt - SLACK
    assert deaf <= ten_seconds


def test_guesses_make_up_for_much_of_what_is_not_heard() -> None:
    some = sharing()
    deaf, guessing = (
        policy_report(run(some, name), 0.0, TARGETS).hit_rate
        for name in (LATE[-1], "kv:kv_delay_s=1e6")
    )
    assert guessing > deaf + 0.05


def test_what_is_lost_is_made_good() -> None:
    some = sharing()
    hits = [policy_report(run(some, name), 0.0, TARGETS).hit_rate for name in LOSSY]
    assert all(hit > hits[0] - SLACK for hit in hits)


@pytest.mark.parametrize("how", ["kv_loss=0.5", "kv_loss=0.9", "kv_loss=0.3:kv_delay_s=0.5"])
def test_the_router_is_true_in_the_end_whatever_was_lost(how: str) -> None:
    # The run itself holds the index against the engines when all is quiet.
    some = sharing()
    lossy = run(some, f"kv:{how}")
    assert {outcome.status for outcome in lossy.outcomes} == {Status.COMPLETED}
    assert lossy.outcomes != run(some, "kv").outcomes
    assert lossy == run(some, f"kv:{how}")


def test_without_events_memory_is_worth_something() -> None:
    some = sharing()
    blind, remembering, told = (
        policy_report(run(some, name), 0.0, TARGETS).hit_rate
        for name in ("round_robin", "approximate", "kv")
    )
    assert blind + 0.05 < remembering < told


def test_bursts_of_siblings_hit_more_where_their_prefix_is_expected() -> None:
    course = Course(requests=400, workers=8, targets=Targets(5_000, 100))
    bursts = scenario_of(course, Cell("sibling bursts", 0.95))
    without, expected = (
        policy_report(run(bursts, name), 0.0, course.targets) for name in ("kv:coming_s=0", "kv")
    )
    assert expected.hit_rate > without.hit_rate + 0.1
    assert expected.goodput > without.goodput + 0.2
