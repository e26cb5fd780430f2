"""One picture of the ladder: goodput of every arm in every cell, as a table of colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from controlplane.replay.ladder import DEGRADED, SUBJECT
from controlplane.replay.ladder_report import LadderReport

BEHIND_MAX = 0.5
"""So far behind the best of the cell an arm gets the darkest colour."""


def save(path: Path, report: LadderReport) -> None:
    """Write the picture. The paler a field, the nearer to the best of its column; the figure in
    it is goodput in percent. Raises OSError, ValueError."""
    scores = report.scores
    cells = list(dict.fromkeys((s.trace, s.load) for s in scores))
    seen = list(dict.fromkeys(s.arm for s in scores))
    arms = sorted(seen, key=lambda name: name in DEGRADED)
    goodput = np.full((len(arms), len(cells)), np.nan)
    for score in scores:
        row, column = arms.index(score.arm), cells.index((score.trace, score.load))
        goodput[row, column] = score.figures.goodput
    figure = Figure(
        figsize=(3.0 + 0.5 * len(cells), 1.6 + 0.32 * len(arms)), dpi=150, layout="constrained"
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    behind = np.nanmax(goodput, axis=0) - goodput
    axes.imshow(behind, cmap="YlOrBr", vmin=0, vmax=BEHIND_MAX, aspect="auto")
    for row, column in np.argwhere(~np.isnan(goodput)):
        dark = behind[row, column] > 0.6 * BEHIND_MAX
        axes.text(
            column,
            row,
            f"{100 * goodput[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            fontweight="bold" if arms[row] == SUBJECT else "normal",
        )
    axes.set_yticks(range(len(arms)), arms, fontsize=8)
    axes.set_xticks(range(len(cells)), [f"{load:.0%}" for _, load in cells], fontsize=8)
    axes.tick_params(length=0)
    _name_traces(axes, [trace for trace, _ in cells])
    first_degraded = sum(name not in DEGRADED for name in arms)
    axes.axhline(first_degraded - 0.5, color="white", linewidth=4)
    axes.spines[:].set_visible(False)
    settings = report.settings
    figure.suptitle(
        f"Goodput, % of requests with TTFT up to {settings['ttft_target_ms']:g} ms and TPOT up to"
        f" {settings['tpot_target_ms']:g} ms ({settings['workers']} engines,"
        f" {settings['requests']} requests a run; columns: load)",
        fontsize=10,
        x=0.008,
        ha="left",
    )
    figure.savefig(path)


def _name_traces(axes: Axes, traces: Sequence[str]) -> None:
    """Above the columns of each trace, with a gap before the next."""
    above = axes.get_xaxis_transform()
    for trace in dict.fromkeys(traces):
        first, many = traces.index(trace), traces.count(trace)
        centre = first + (many - 1) / 2
        axes.text(centre, 1.01, trace, ha="center", va="bottom", fontsize=9, transform=above)
        if first:
            axes.axvline(first - 0.5, color="white", linewidth=4)
