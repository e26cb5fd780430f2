"""Breakers and limits, by a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.gateway.openai import ClientError
from controlplane.gateway.pools import (
    FAILURES_MIN,
    OPEN_FIRST_S,
    OPEN_MAX_S,
    Attempt,
    Breaker,
    Pools,
)
from proto.ids import WorkerId


def passed(breaker: Breaker, now_s: float) -> Attempt:
    attempt = breaker.attempt(now_s)
    assert isinstance(attempt, Attempt)
    return attempt


def wait_s(breaker: Breaker, now_s: float) -> float:
    wait = breaker.attempt(now_s)
    assert isinstance(wait, float)
    return wait


def goes(breaker: Breaker, ok: bool | None, now_s: float) -> None:
    attempt = passed(breaker, now_s)
    attempt.ok = ok
    breaker.report(attempt, now_s)


def broken(now_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(FAILURES_MIN):
        goes(breaker, False, now_s)
    return breaker


def test_it_opens_when_most_fail_and_refuses_at_once() -> None:
    assert wait_s(broken(5.0), 5.0) == pytest.approx(OPEN_FIRST_S)


def test_a_few_failures_among_many_successes_do_not_open_it() -> None:
    breaker = Breaker()
    for nth in range(300):
        goes(breaker, nth % 3 > 0, 1.0)
    assert breaker.closed


def test_what_was_with_a_worker_when_it_died_is_one_failure() -> None:
    breaker = Breaker()
    streams = [passed(breaker, nth / 100) for nth in range(200)]
    for stream in streams:
        stream.worker, stream.ok = WorkerId("dead"), False
        breaker.report(stream, 3.0)
    assert breaker.closed
    for nth in range(FAILURES_MIN - 1):
        again = passed(breaker, 4.0 + nth)
        again.worker, again.ok = WorkerId("dead"), False
        breaker.report(again, 4.5 + nth)
    assert not breaker.closed


def test_failures_long_ago_do_not_count() -> None:
    breaker = Breaker()
    for nth in range(FAILURES_MIN * 4):
        goes(breaker, False, nth * 30.0)
    assert breaker.closed


def test_one_is_let_through_and_decides() -> None:
    breaker = broken()
    probe = passed(breaker, OPEN_FIRST_S)
    assert wait_s(breaker, OPEN_FIRST_S) > 0, "only one"
    probe.ok = True
    breaker.report(probe, OPEN_FIRST_S)
    assert breaker.closed


def test_what_was_begun_before_it_opened_does_not_close_it() -> None:
    breaker = Breaker()
    early = passed(breaker, 0.0)
    for _ in range(FAILURES_MIN):
        goes(breaker, False, 0.0)
    early.ok = True
    breaker.report(early, 0.5)
    assert not breaker.closed


def test_a_pool_that_stays_broken_is_asked_less_and_less() -> None:
    breaker, now_s, waits = broken(), 0.0, []
    for _ in range(12):
        waits.append(wait_s(breaker, now_s))
        now_s += waits[-1]
        goes(breaker, False, now_s)
    assert waits == sorted(waits) and waits[-1] == OPEN_MAX_S


def test_who_has_come_back_is_tried_at_once_and_others_wait() -> None:
    breaker = broken()
    goes(breaker, False, OPEN_FIRST_S)
    breaker.renewed(1.5)
    probe = passed(breaker, 1.5)
    assert wait_s(breaker, 1.5) > 0, "only one"
    probe.ok = True
    breaker.report(probe, 1.6)
    assert breaker.closed
    breaker.renewed(1.7)
    assert breaker.closed


def test_a_probe_that_decided_nothing_costs_no_pause() -> None:
    breaker = broken()
    goes(breaker, None, OPEN_FIRST_S)
    goes(breaker, True, OPEN_FIRST_S)
    assert breaker.closed


def test_a_probe_that_takes_long_or_teaches_nothing_is_followed_by_another() -> None:
    breaker = broken()
    passed(breaker, OPEN_FIRST_S)
    goes(breaker, None, 2 * OPEN_FIRST_S)
    goes(breaker, True, 3 * OPEN_FIRST_S)
    assert breaker.closed


@given(st.lists(st.tuples(st.floats(0, 20), st.sampled_from([True, False, None])), max_size=80))
def test_it_never_stays_shut_for_ever(steps: list[tuple[float, bool | None]]) -> None:
    breaker, now_s = Breaker(), 0.0
    for pause_s, ok in steps:
        now_s += pause_s
        attempt = breaker.attempt(now_s)
        if isinstance(attempt, Attempt):
            attempt.ok = ok
            breaker.report(attempt, now_s)
    passed(breaker, now_s + OPEN_MAX_S)


def test_a_full_pool_says_so_and_leaves_the_others_alone() -> None:
    pools = Pools(1, lambda: 0.0)
    with pools.entered("a"):
        with pytest.raises(ClientError) as refused, pools.entered("a"):
            raise AssertionError("it must not have come in")
        with pools.entered("b"):
            pass
    with pools.entered("a"):
        pass
    assert (refused.value.status, refused.value.code) == (503, "pool_full")


def test_gw8_a_failing_pool_is_not_asked_and_another_is() -> None:
    pools = Pools(9, lambda: 0.0)
    for _ in range(FAILURES_MIN):
        with pools.attempt("poisoned") as attempt:
            attempt.ok = False
    with pytest.raises(ClientError) as refused, pools.attempt("poisoned"):
        raise AssertionError("it must not have been tried")
    assert refused.value.code == "pool_failing" and refused.value.retry_after_s
    with pools.attempt("well"):
        pass
