"""How both sides are timed: in turns, in one process, with the garbage collector at rest."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

A = TypeVar("A")

OURS, PEER = "ours", "peer"


def turns(sides: Sequence[str], rounds: int) -> Iterator[tuple[str, bool]]:
    """Whose turn it is, and whether it counts: each side once a round, `rounds` times.

    Who begins changes with every round; one round more, the first, does not count. Garbage is
    collected before each turn and left alone during it.
    """
    for number in range(rounds + 1):
        for side in sides[:: 1 if number % 2 else -1]:
            gc.collect()
            gc.disable()
            try:
                yield side, number > 0
            finally:
                gc.enable()


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median figure of each side over `rounds`, in which the sides take turns."""
    figures: dict[str, list[float]] = {side: [] for side in sides}
    for side, counts in turns(tuple(sides), rounds):
        figure = sides[side]()
        if counts:
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
