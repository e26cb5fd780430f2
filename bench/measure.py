"""How both sides are timed: in turns, in one process, with the garbage collector at rest."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

A = TypeVar("A")

OURS, PEER = "ours", "peer"


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median figure of each side over `rounds`, in which the sides take turns.

    Who begins changes with every round; one round more, the first, is not counted. Garbage is
    collected before each turn and left alone during it.
    """
    figures: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side in list(sides)[:: 1 if number % 2 else -1]:
            gc.collect()
            gc.disable()
            try:
                figure = sides[side]()
            finally:
                gc.enable()
            if number:
                figures[side].append(figure)
    return {side: statistics.median(of_side) for side, of_side in figures.items()}


def p50_us(call: Callable[[A], object], arguments: Iterable[A]) -> float:
    """The median time of one call over all arguments, in microseconds."""
    clock = time.perf_counter_ns
    taken_ns = []
    for argument in arguments:
        began_ns = clock()
        call(argument)
        taken_ns.append(clock() - began_ns)
    return statistics.median(taken_ns) / 1e3


def percentile(figures: Sequence[float], share: float) -> float:
    """The smallest figure that at least `share` of all do not exceed."""
    ordered = sorted(figures)
    return ordered[max(0, min(len(ordered) - 1, int(share * len(ordered))))]
