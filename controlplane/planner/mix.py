"""Which hardware: the cheapest workers that together carry a load, within bounds and budget. Pure.

A pool that would need 3.5 workers to carry the load alone carries 2 / 3.5 of it with two. A mix
holds if its shares add up to one. All mixes of up to three kinds are looked at, which are few.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One pool of a phase."""

    name: str
    needed: float
    """Of its workers, if they were alone; infinite if they cannot serve this load at all."""
    price: float
    """An hour of one worker."""
    accelerators: int
    least: int
    most: int

    def share(self, workers: int) -> float:
        """Of the load, that so many carry."""
        if self.needed <= 0:
            return 1.0
        return workers / self.needed if math.isfinite(self.needed) else 0.0


def cheapest(options: Sequence[Option]) -> dict[str, int]:
    """The mix that holds for the least money, then with the fewest workers; where none holds, all
    that the bounds allow of what helps."""
    holding = [counts for counts in _mixes(options) if _share(options, counts) >= 1 - 1e-9]
    if not holding:
        return {
            each.name: each.most if math.isfinite(each.needed) else each.least for each in options
        }
    best = min(holding, key=lambda counts: (_price(options, counts), sum(counts)))
    return {each.name: count for each, count in zip(options, best, strict=True)}


def _mixes(options: Sequence[Option]) -> Iterator[tuple[int, ...]]:
    """Counts within bounds; of the last pool only the fewest that make the mix hold."""

    def go_on(index: int, counts: tuple[int, ...], left: float) -> Iterator[tuple[int, ...]]:
        option = options[index]
        enough = option.least
        if left > 1e-9 and math.isfinite(option.needed):
            enough = max(enough, math.ceil(left * option.needed - 1e-9))
        enough = min(enough, option.most)
        if index == len(options) - 1:
            yield (*counts, enough)
            return
        for count in range(option.least, enough + 1):
            yield from go_on(index + 1, (*counts, count), left - option.share(count))

    if options:
        yield from go_on(0, (), 1.0)


def _share(options: Sequence[Option], counts: Sequence[int]) -> float:
    return sum(each.share(count) for each, count in zip(options, counts, strict=True))


def _price(options: Sequence[Option], counts: Sequence[int]) -> float:
    return sum(each.price * count for each, count in zip(options, counts, strict=True))
