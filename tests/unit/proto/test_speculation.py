"""The formulas of speculative decoding."""

from __future__ import annotations

import pytest

from proto.load import StepSums
from proto.speculation import (
    accept_length,
    conditional_acceptance,
    expected_accept_length,
    expected_speedup,
)


def test_the_requirements_example() -> None:
    """SD6: a = 0.8, K = 5, c = 0.08."""
    assert expected_speedup(0.8, 5, 0.08) == pytest.approx(2.64, abs=0.005)


def test_the_sum_is_the_closed_formula() -> None:
    for a, k in ((0.3, 1), (0.5, 4), (0.9, 8)):
        assert expected_accept_length(a, k) == pytest.approx((1 - a ** (k + 1)) / (1 - a))
    assert expected_accept_length(0.0, 5) == 1
    assert expected_accept_length(1.0, 5) == 6


def test_drafts_that_are_never_kept_only_cost() -> None:
    assert expected_speedup(0.0, 5, 0.08) == pytest.approx(1 / 1.4)


def test_accept_length_is_one_and_what_was_kept() -> None:
    """SD7."""
    assert accept_length(100, 250) == 3.5
    assert accept_length(0, 0) == 1.0


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.8, 0.95])
def test_the_acceptance_is_found_again_from_the_length(acceptance: float) -> None:
    length = expected_accept_length(acceptance, 5)
    assert conditional_acceptance(length, 5) == pytest.approx(acceptance)


def test_a_report_tells_its_accept_length() -> None:
    assert StepSums().accept_length == 1.0
    assert StepSums(steps=10, decode_batch=40, accepted_drafts=60).accept_length == 2.5
