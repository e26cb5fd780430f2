"""A split fleet comes through whatever dies, whenever; by seed."""

from __future__ import annotations

import pytest

from tests.simulation import engines, split


@pytest.mark.parametrize("seed", range(4))
def test_dg20_no_wrong_token_and_nothing_left_behind(seed: int) -> None:
    played = split.run(seed)
    assert sum(played.faults.values()) > 5
    assert played.outcomes["whole"] > 0


def test_who_prefills_by_itself_in_the_end_is_not_aborted_for_what_it_could_not_read() -> None:
    played = split.run_unread(seed=0, requests=6)
    assert sum(played.faults.values()) >= 6
    assert played.outcomes == {"whole": 7}  # and one when it is quiet again


def test_an_answer_that_is_not_streamed_is_computed_once_however_long_it_takes() -> None:
    assert max(split.run_whole(seed=0, requests=3)) < engines.WHOLE_S + 1
