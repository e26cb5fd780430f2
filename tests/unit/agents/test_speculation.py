"""Drafts: measured, judged, switched off and tried again."""

from __future__ import annotations

from itertools import pairwise

import pytest

from agents.speculation import (
    RETRY_MAX_S,
    VERIFICATIONS_MIN,
    Advice,
    DraftPolicy,
    DraftWatch,
    Reason,
)
from proto.load import StepSums

POLICY = DraftPolicy(acceptance_min=0.3, batch_max=32, retry_s=60.0, draft_cost=0.08)


def window(
    accepted: float = 0.5, batch: int = 4, steps: int = 100, step_ms: float = 40.0, drafts: int = 5
) -> StepSums:
    """Steps with `drafts` for each sequence, of which that share is kept."""
    verifications = steps * batch if drafts else 0
    return StepSums(
        steps=steps,
        decode_batch=steps * batch,
        decode_ms=steps * step_ms,
        accepted_drafts=round(verifications * drafts * accepted),
        verifications=verifications,
        drafted_tokens=verifications * drafts,
    )


OFF_ACCEPTANCE = Advice(on=False, reason=Reason.ACCEPTANCE)
OFF_BATCH = Advice(on=False, reason=Reason.BATCH)
ON = Advice(on=True, reason=Reason.RECOVERED)


def test_good_drafts_are_left_alone() -> None:
    watch = DraftWatch(POLICY)
    assert [watch.observe(window(), second) for second in range(100)] == [None] * 100
    assert watch.wanted
    assert watch.acceptance_rate == pytest.approx(0.5)
    assert watch.accept_length == pytest.approx(3.5)


def test_poor_drafts_are_switched_off_once_enough_were_seen() -> None:
    watch = DraftWatch(POLICY)
    few = window(accepted=0.1, batch=1, steps=VERIFICATIONS_MIN - 1)
    assert watch.observe(few, 0.0) is None
    assert watch.observe(window(accepted=0.1, batch=1, steps=1), 1.0) == OFF_ACCEPTANCE
    assert not watch.wanted


def test_they_are_tried_again_later_and_each_time_later() -> None:
    watch = DraftWatch(POLICY)
    now_s = tries = 0
    tried_s: list[float] = []
    while tries < 12:
        now_s += 1
        advice = watch.observe(window(0.1, drafts=5 if watch.wanted else 0), now_s)
        if advice == ON:
            tried_s.append(now_s)
            tries += 1
    gaps = [after - before for before, after in pairwise(tried_s)]
    assert gaps[0] == pytest.approx(120, abs=2)
    assert gaps[1] == pytest.approx(240, abs=2)
    assert gaps[-1] == pytest.approx(RETRY_MAX_S, abs=2)


def test_an_idle_engine_is_tried_again_too() -> None:
    watch = DraftWatch(POLICY)
    assert watch.observe(window(0.1), 0.0) == OFF_ACCEPTANCE
    assert watch.observe(StepSums(), 59.0) is None
    assert watch.observe(StepSums(), 61.0) == ON


def test_text_that_drafts_better_makes_up_for_it() -> None:
    watch = DraftWatch(POLICY)
    watch.observe(window(0.1), 0.0)
    assert watch.observe(window(drafts=0), 61.0) == ON
    assert watch.observe(window(0.6), 62.0) is None
    # Proven, so the next failure waits as short as the first.
    for second in range(63, 200):
        if watch.observe(window(0.05), second) == OFF_ACCEPTANCE:
            break
    assert watch.observe(window(drafts=0), second + 61) == ON


def test_large_batches_switch_off_and_only_much_smaller_ones_switch_on() -> None:
    watch = DraftWatch(POLICY)
    assert watch.observe(window(batch=32), 0.0) is None
    assert watch.observe(window(batch=33), 1.0) == OFF_BATCH
    for second, batch in enumerate((40, 31, 25, 24), start=2):
        assert watch.observe(window(batch=batch, drafts=0), second) is None
    assert watch.observe(window(batch=23, drafts=0), 7.0) == ON


def test_without_limits_nothing_is_switched() -> None:
    watch = DraftWatch(DraftPolicy())
    assert watch.observe(window(accepted=0.0, batch=500), 0.0) is None


def test_an_engine_without_drafts_is_given_no_advice() -> None:
    watch = DraftWatch(POLICY)
    assert watch.observe(window(batch=500, drafts=0), 0.0) is None
    assert watch.wanted


def test_expected_beside_measured() -> None:
    """SD6."""
    watch = DraftWatch(POLICY)
    assert watch.expected_speedup is None
    watch.observe(window(accepted=2.69 / 5, step_ms=42.0), 0.0)
    # a = 0.8, K = 5: E = 3.69.
    assert watch.expected_speedup == pytest.approx(2.64, abs=0.01)
    assert watch.measured_speedup is None
    watch.observe(window(drafts=0, step_ms=30.0), 1.0)
    assert watch.measured_speedup == pytest.approx(3.69 * 30 / 42, rel=0.01)
    watch.observe(window(drafts=0, batch=64, step_ms=50.0), 2.0)
    assert watch.measured_speedup is None  # at this batch there were no drafts
