from __future__ import annotations

import gc

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
