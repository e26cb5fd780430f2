from __future__ import annotations

import gc
import os
import threading

from bench.machine import machine, one_core
from bench.measure import in_turns, percentile


def test_sides_take_turns_and_the_first_round_does_not_count() -> None:
    turns: list[str] = []

    def side(name: str, figures: list[float]) -> float:
        turns.append(name)
        assert not gc.isenabled()
        return figures.pop(0)

    ours, theirs = [99.0, 1.0, 3.0, 2.0], [99.0, 10.0, 30.0, 20.0]
    medians = in_turns({"a": lambda: side("a", ours), "b": lambda: side("b", theirs)}, 3)
    assert medians == {"a": 2.0, "b": 20.0}
    assert turns == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert gc.isenabled()


def test_percentiles_are_figures_that_were_measured() -> None:
    figures = [float(i) for i in range(100, 0, -1)]
    assert percentile(figures, 0.5) == 51.0
    assert percentile(figures, 0.99) == 100.0
    assert percentile([7.0], 0.99) == 7.0


def test_one_core_is_for_every_thread_and_for_a_while() -> None:
    everywhere = os.sched_getaffinity(0)
    allowed: list[set[int]] = []
    go, end = threading.Event(), threading.Event()

    def look() -> None:
        for moment in (go, end):
            assert moment.wait(10)
            allowed.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=look)
    thread.start()
    with one_core():
        go.set()
        while not allowed:
            pass
        assert len(os.sched_getaffinity(0)) == 1
    end.set()
    thread.join()
    assert allowed == [{min(everywhere)}, everywhere]
    assert os.sched_getaffinity(0) == everywhere


def test_the_machine_is_a_row_of_its_cores() -> None:
    row = machine()
    assert row.case.startswith("machine: ")
    assert "load" in row.case
    assert (row.ours, row.peer, row.unit) == (len(os.sched_getaffinity(0)), None, "cores")
