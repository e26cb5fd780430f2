"""A split fleet comes through whatever dies, whenever; by seed."""

from __future__ import annotations

import pytest

from tests.simulation import split


@pytest.mark.parametrize("seed", range(4))
def test_dg20_no_wrong_token_and_nothing_left_behind(seed: int) -> None:
    played = split.run(seed)
    assert sum(played.faults.values()) > 5
    assert played.outcomes["whole"] > 0
