from __future__ import annotations

from controlplane.runtime.clock import steady_clock


def test_a_clock_that_is_set_changes_nothing_for_who_runs() -> None:
    wall, elapsed = [1_000_000.0], [50.0]
    clock = steady_clock(lambda: wall[0], lambda: elapsed[0])
    assert clock() == 1_000_000.0
    wall[0] -= 3_600.0
    elapsed[0] += 5.0
    assert clock() == 1_000_005.0
