"""A process that stood still knows it, whoever looks first when it goes on."""

from __future__ import annotations

import pytest

from controlplane.gateway.pulse import BEAT_S, Pulse


def beating(until_s: float) -> Pulse:
    pulse = Pulse()
    for beat in range(int(until_s / BEAT_S) + 1):
        pulse.beat(beat * BEAT_S)
    return pulse


def test_a_process_that_runs_has_not_stood_still() -> None:
    assert beating(10.0).stood_still_s(0.0, 10.3) == 0


@pytest.mark.parametrize("beats_first", [True, False])
def test_a_pause_is_known_at_once(beats_first: bool) -> None:
    pulse = beating(10.0)
    if beats_first:
        pulse.beat(50.0)
    assert pulse.stood_still_s(5.0, 50.0) == pytest.approx(39.5)
    assert pulse.stood_still_s(5.0, 50.1) == pytest.approx(39.5)


def test_what_began_after_a_pause_was_not_held_up_by_it() -> None:
    pulse = beating(10.0)
    pulse.beat(50.0)
    assert pulse.stood_still_s(50.0, 51.0) == 0


def test_pauses_add_up() -> None:
    pulse = beating(10.0)
    pulse.beat(20.0)
    pulse.beat(30.0)
    assert pulse.stood_still_s(0.0, 30.1) == pytest.approx(9.5 + 9.5)


def test_one_that_was_never_run_knows_of_none() -> None:
    assert Pulse().stood_still_s(0.0, 99.0) == 0
