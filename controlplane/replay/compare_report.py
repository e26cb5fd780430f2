"""A comparison of hardware for people: two tables, and one picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from controlplane.replay.compare import Answer, Comparison, Figures
from controlplane.replay.plot import COLOURS, tidy

Rows = Sequence[tuple[str, Callable[[Figures], str]]]

_ROWS: Rows = (
    ("workers", lambda f: f"{f.workers:,}"),
    ("  accelerators", lambda f: f"{f.accelerators:,}"),
    ("goodput", lambda f: f"{f.results.goodput:.1%}"),
    ("TTFT ms p50", lambda f: _number(f.results.ttft_ms.p50, ",.0f")),
    ("TTFT ms p99", lambda f: _number(f.results.ttft_ms.p99, ",.0f")),
    ("TPOT ms p50", lambda f: _number(f.results.tpot_ms.p50, ",.1f")),
    ("TPOT ms p99", lambda f: _number(f.results.tpot_ms.p99, ",.1f")),
    ("engines busy", lambda f: _number(f.results.busy, ".1%")),
    ("$ an hour", lambda f: _number(f.dollars_per_hour, ",.2f")),
    ("$ per 1k tokens", lambda f: _number(f.results.cost_per_1k_tokens, ".4f")),
)


def tables(comparison: Comparison) -> list[Table]:
    """Equal fleet, equal SLO."""
    answers, hold = comparison.profiles, comparison.settings["hold"]
    title = f"{comparison.trace.name}: {comparison.trace.requests:,} requests, equal fleet"
    fleet = _table(title, answers, [a.equal_fleet for a in answers])
    fleet.add_row("KV tokens a worker", *(f"{a.kv_tokens:,}" for a in answers))
    fleet.add_row("capacity, requests/s a worker", *(f"{a.capacity:.2f}" for a in answers))
    fleet.add_row("in time on an idle worker", *(f"{a.reachable:.1%}" for a in answers))
    title = f"equal SLO: the fewest workers that keep {hold:.0%} within both targets"
    return [fleet, _table(title, answers, [a.equal_slo for a in answers])]


def save(path: Path, comparison: Comparison) -> None:
    """Write the picture as a PNG (or what the suffix says). Raises OSError, ValueError."""
    figure = Figure(figsize=(11, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    trace = comparison.trace
    figure.suptitle(f"{trace.name}: {trace.requests:,} requests", fontsize=12, x=0.008, ha="left")
    grid = figure.subplots(2, 3)
    answers = comparison.profiles
    fleet, slo = [a.equal_fleet for a in answers], [a.equal_slo for a in answers]
    names = [_name(answer) for answer in answers]
    count = fleet[0].workers

    def panel(row: int, column: int, title: str, values: list[float | None], spec: str) -> None:
        _bars(grid[row][column], title, names, values, spec)

    panel(0, 0, "Capacity: requests a second, one worker", [a.capacity for a in answers], ".2f")
    panel(0, 1, f"Goodput, {count} workers each", [f.results.goodput for f in fleet], ".1%")
    ttfts = [f.results.ttft_ms.p99 for f in fleet]
    panel(0, 2, f"TTFT p99 in ms, {count} workers each", ttfts, ",.0f")
    hold = comparison.settings["hold"]
    workers = [float(f.workers) if f else None for f in slo]
    panel(1, 0, f"Workers that keep {hold:.0%} in SLO", workers, ",.0f")
    costs = [f.results.cost_per_1k_tokens if f else None for f in slo]
    panel(1, 1, "... and their $ per 1k tokens", costs, ".4f")
    tpots = [f.results.tpot_ms.p99 for f in fleet]
    panel(1, 2, f"TPOT p99 in ms, {count} workers each", tpots, ",.1f")
    figure.savefig(path)


def _table(title: str, answers: Sequence[Answer], figures: Sequence[Figures | None]) -> Table:
    grid = Table(title=title, min_width=len(title))
    grid.add_column("", no_wrap=True)
    for answer in answers:
        grid.add_column(_name(answer), justify="right")
    for name, told in _ROWS:
        grid.add_row(name, *("-" if f is None else told(f) for f in figures))
    return grid


def _name(answer: Answer) -> str:
    """Short, with a star where nobody measured it."""
    return answer.profile.partition("-")[0] + "*" * answer.derived


def _bars(
    axes: Axes, title: str, names: list[str], values: Sequence[float | None], spec: str
) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    rows = range(len(names))
    lengths = [value or 0.0 for value in values]
    axes.barh(rows, lengths, color=[COLOURS[i % len(COLOURS)] for i in rows], height=0.62)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    for row, value in zip(rows, values, strict=True):
        axes.text(value or 0.0, row, f" {_number(value, spec)}", va="center", fontsize=9)
    axes.set_xlim(0, max(*lengths, 1e-9) * 1.25)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    tidy(axes, grid="x")


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else f"{value:{spec}}"
