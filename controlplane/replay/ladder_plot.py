"""One picture of the ladder: goodput of every arm in every cell, as a table of colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from controlplane.replay.ladder import ORACLE, SUBJECT, Score, degraded
from controlplane.replay.ladder_report import LadderReport

BEHIND_MAX = 0.3
"""So far behind the best of the cell, the oracle aside, an arm gets the darkest colour."""

Cells = Sequence[tuple[str, float]]


def save(path: Path, report: LadderReport) -> None:
    """Write the picture. The paler a field, the nearer to the best that a router made of its
    column; the figure in it is goodput in percent. Raises OSError, ValueError."""
    cells = list(dict.fromkeys((s.trace, s.load) for s in report.scores))
    arms = list(dict.fromkeys(s.arm for s in report.scores))
    arms.sort(key=degraded)
    size = (3.0 + 0.5 * len(cells), 1.6 + 0.32 * len(arms))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), fontsize=10, x=0.008, ha="left")
    axes = figure.subplots()
    _fields(axes, arms, _goodput(report.scores, arms, cells))
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_xticks(range(len(cells)), [f"{load:.0%}" for _, load in cells], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axhline(len(arms) - sum(map(degraded, arms)) - 0.5, color="white", linewidth=4)
    _name_traces(axes, [trace for trace, _ in cells])
    figure.savefig(path)


def _goodput(scores: Sequence[Score], arms: Sequence[str], cells: Cells) -> NDArray[np.float64]:
    """A row an arm, a column a cell; NaN where it was not run."""
    goodput = np.full((len(arms), len(cells)), np.nan)
    for score in scores:
        row, column = arms.index(score.arm), cells.index((score.trace, score.load))
        goodput[row, column] = score.figures.goodput
    return goodput


def _fields(axes: Axes, arms: Sequence[str], goodput: NDArray[np.float64]) -> None:
    routers = [row for row, name in enumerate(arms) if name != ORACLE] or [0]
    behind = np.nanmax(goodput[routers], axis=0) - goodput
    axes.imshow(behind, cmap="YlOrBr", vmin=0, vmax=BEHIND_MAX, aspect="auto")
    for row, column in np.argwhere(~np.isnan(goodput)):
        axes.text(
            column,
            row,
            f"{100 * goodput[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if behind[row, column] > 0.6 * BEHIND_MAX else "black",
            fontweight="bold" if arms[row] == SUBJECT else "normal",
        )


def _name_traces(axes: Axes, traces: Sequence[str]) -> None:
    """Above the columns of each trace, with a gap before the next."""
    above = axes.get_xaxis_transform()
    for trace in dict.fromkeys(traces):
        first, many = traces.index(trace), traces.count(trace)
        centre = first + (many - 1) / 2
        axes.text(centre, 1.01, trace, ha="center", va="bottom", fontsize=9, transform=above)
        if first:
            axes.axvline(first - 0.5, color="white", linewidth=4)


def _title(report: LadderReport) -> str:
    settings = report.settings
    return (
        f"Goodput, % of requests with TTFT up to {settings['ttft_target_ms']:g} ms and TPOT up to"
        f" {settings['tpot_target_ms']:g} ms ({settings['workers']} engines,"
        f" {settings['requests']} requests a run; columns: load)"
    )
