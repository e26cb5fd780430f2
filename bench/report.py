"""Rows for people: a table in the terminal, and the tables of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from bench.catalogue import NAMES, benchmark, summary
from bench.rows import Bar, Row, bar_of

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
VERDICTS = {True: "met", False: "missed", None: ""}


class NoPlace(Exception):
    """The page has no place for the tables."""


def table(name: str, rows: Sequence[Row], bars: Sequence[Bar]) -> Table:
    """One benchmark, for the terminal."""
    made = Table(title=f"{name}: {summary(name)}", title_justify="left")
    made.add_column("case")
    for column in ("ours", "peer", "unit", "ratio", "bar", ""):
        made.add_column(column, justify="left" if column == "unit" else "right")
    for row in rows:
        made.add_row(*_cells(row, bars))
    return made


def refresh(page: Path, results: Path) -> int:
    """Write the tables of every benchmark that has results into the page, between its two marks;
    returns how many. Raises `NoPlace`."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoPlace(f"{page} has no `{BEGIN}` and `{END}`")
    found = [name for name in NAMES if (results / f"{name}.json").exists()]
    tables = [markdown(name, read(results / f"{name}.json")) for name in found]
    page.write_text("\n\n".join([before + BEGIN, *tables, END + after]))
    return len(found)


def markdown(name: str, rows: Sequence[Row]) -> str:
    """One benchmark, for the page."""
    first, *others = rows
    heads = ("case", "ours", "peer", "unit", "ratio", "bar", "")
    machine = f"{first.case.removeprefix('machine: ')}, {first.ours:g} cores"
    lines = [f"### {name}: {summary(name)}", "", f"On {machine}.", ""]
    lines += [_line(heads), _line(("---", "--:", "--:", "---", "--:", "--:", "---"))]
    lines += [_line(_cells(row, benchmark(name).BARS)) for row in others]
    return "\n".join(lines)


def read(file: Path) -> list[Row]:
    """Rows as `--json` writes them."""
    return msgspec.json.decode(file.read_bytes(), type=list[Row])


def write(file: Path, rows: Sequence[Row]) -> None:
    """A JSON list of rows."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(rows), indent=2) + b"\n")


def _cells(row: Row, bars: Sequence[Bar]) -> Iterator[str]:
    bar = bar_of(row, bars)
    yield row.case
    yield _figure(row.ours)
    yield _figure(row.peer)
    yield row.unit
    yield "" if row.ratio is None else f"{row.ratio:.2f}"
    yield "" if bar is None else str(bar)
    yield "" if bar is None else VERDICTS[bar.met(row)]


def _figure(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"


def _line(cells: Sequence[str] | Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"
