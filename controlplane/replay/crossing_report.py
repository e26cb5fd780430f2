"""Where speculation stops helping, for people: a table, and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from controlplane.replay.crossing import Line, Sweep
from controlplane.replay.plot import COLOURS, tidy


def table(of: Sweep, lines: Sequence[Line]) -> Table:
    """One row a load, and where each acceptance crosses 1."""
    title = f"decoding with {of.drafts} drafts against none, {of.profile.name}"
    grid = Table(title=title, min_width=len(title))
    grid.add_column("mean batch", justify="right")
    for line in lines:
        grid.add_column(f"acceptance {line.acceptance:g}", justify="right")
    for row, batch in enumerate(lines[0].batches):
        grid.add_row(f"{batch:.0f}", *(f"{line.speedups[row]:.2f}x" for line in lines))
    grid.add_section()
    grid.add_row("by formula", *(f"{line.expected:.2f}x" for line in lines))
    grid.add_row("hurts from", *(_crossing(line) for line in lines))
    return grid


def save(path: Path, of: Sweep, lines: Sequence[Line]) -> None:
    """Write the picture as a PNG (or what the suffix says). Raises OSError, ValueError."""
    figure = Figure(figsize=(11, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    title = f"{of.profile.name}, {of.drafts} drafts a verification, a draft {of.draft_cost:g} steps"
    figure.suptitle(title, fontsize=12, x=0.008, ha="left")
    speedup, ttft = figure.subplots(1, 2)
    for line, colour in zip(lines, COLOURS, strict=False):
        label = f"acceptance {line.acceptance:g} (formula: {line.expected:.2f}x)"
        speedup.plot(line.batches, line.speedups, color=colour, marker="o", ms=3, label=label)
        ttft.plot(line.batches, line.ttft_ratios, color=colour, marker="o", ms=3)
        if line.crossing is not None:
            speedup.plot([line.crossing], [1.0], color=colour, marker="x", ms=9, mew=2)
    _even(speedup, "Speed-up of time per output token", "above 1: speculation helps")
    _even(ttft, "Time to first token, with drafts by without", "above 1: it waits longer")
    speedup.legend(frameon=False, fontsize=8)
    figure.savefig(path)


def _even(axes: Axes, title: str, words: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.axhline(1.0, color="#555555", linestyle="--", linewidth=1)
    axes.set_xlabel("sequences decoded in a step, without drafts", fontsize=9)
    axes.set_ylabel(words, fontsize=9)
    tidy(axes, grid="both")


def _crossing(line: Line) -> str:
    return "-" if line.crossing is None else f"{line.crossing:.0f}"
