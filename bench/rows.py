"""What a benchmark says: rows of figures, and the bars they are held against."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec

SIGNIFICANT_DIGITS = 4


class Row(msgspec.Struct, frozen=True):
    """One figure of each side, in `unit`; `ratio` is ours divided by the peer's.

    `peer` and `ratio` are null where there is no peer, or it is not installed.
    """

    case: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str


class Bar(NamedTuple):
    """What the figures of the cases that match `cases` (as file names do) must come to."""

    cases: str
    of: Literal["ours", "ratio"]
    side: Literal["at most", "at least"]
    limit: float

    def __str__(self) -> str:
        sign = "≤" if self.side == "at most" else "≥"
        return f"{'' if self.of == 'ours' else 'ratio '}{sign} {self.limit:g}"

    def met(self, row: Row) -> bool | None:
        """Whether the row meets the bar; None where the figure is missing."""
        figure = row.ours if self.of == "ours" else row.ratio
        if figure is None:
            return None
        return figure <= self.limit if self.side == "at most" else figure >= self.limit


def row(case: str, unit: str, ours: float | None, peer: float | None = None) -> Row:
    """A row with its ratio, rounded to what such a measurement can tell."""
    ratio = None if ours is None or not peer else _rounded(ours / peer)
    return Row(case, _rounded(ours), _rounded(peer), ratio, unit)


def bar_of(row: Row, bars: Iterable[Bar]) -> Bar | None:
    """The first bar that speaks of the row's case."""
    return next((bar for bar in bars if fnmatchcase(row.case, bar.cases)), None)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else float(f"{figure:.{SIGNIFICANT_DIGITS}g}")
