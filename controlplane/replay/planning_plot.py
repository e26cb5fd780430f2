"""One picture of compared planners: demand, workers over time, attainment against worker-hours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from controlplane.replay.elastic import ElasticRun
from controlplane.replay.planning import PlanReport
from controlplane.replay.plot import COLOURS
from controlplane.replay.trace import TraceRequest

BIN_S = 30.0


def save(
    path: Path,
    report: PlanReport,
    requests: Sequence[TraceRequest],
    runs: Mapping[str, ElasticRun],
) -> None:
    """Write the picture as a PNG (or what the suffix says). Raises OSError, ValueError."""
    figure = Figure(figsize=(11, 7), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{report.trace}: TTFT {report.ttft_ms:g} ms, TPOT {report.tpot_ms:g} ms",
        fontsize=12,
        x=0.008,
        ha="left",
    )
    grid = figure.subplot_mosaic([["demand", "share"], ["workers", "share"]], width_ratios=[3, 2])
    demand, workers, share = grid["demand"], grid["workers"], grid["share"]
    times = np.array([each.arrival_s for each in requests]) / BIN_S
    tokens = np.array([each.input_tokens for each in requests], dtype=float)
    minutes = np.arange(int(times.max()) + 1) * BIN_S / 60
    demand.plot(minutes, np.bincount(times.astype(int)) / BIN_S, color="#333333", linewidth=1.2)
    demand.set_ylabel("requests/s", fontsize=9)
    other = demand.twinx()
    of_tokens = np.bincount(times.astype(int), weights=tokens) / BIN_S / 1000
    other.plot(minutes, of_tokens, color="#999999", linewidth=0.9, linestyle=":")
    other.set_ylabel("thousand prompt tokens/s (dotted)", fontsize=8)
    demand.set_title("Demand", loc="left", fontsize=10)
    end_s = max(requests[-1].arrival_s, *(run.timeline[-1][0] for run in runs.values()))
    for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
        # A fleet that never changes has one entry, and is there to the end.
        timeline = [*run.timeline, (end_s, *run.timeline[-1][1:])]
        at = [time_s / 60 for time_s, _, _ in timeline]
        counts = [total for _, _, total in timeline]
        workers.step(at, counts, where="post", label=name, color=colour, linewidth=1.5)
        figures = report.arms[name]
        share.scatter(figures.worker_hours, figures.attainment, color=colour, s=60, zorder=3)
        share.annotate(
            f" {name}", (figures.worker_hours, figures.attainment), fontsize=9, va="center"
        )
    workers.set_title("Workers that cost", loc="left", fontsize=10)
    workers.set_xlabel("minutes", fontsize=9)
    workers.legend(loc="upper left", frameon=False, fontsize=8, ncols=3)
    workers.set_ylim(0, max(n for r in runs.values() for _, _, n in r.timeline) * 1.25)
    share.axhline(report.goal, color="#555555", linestyle="--", linewidth=1)
    share.set_title("Requests within both targets, by worker-hours", loc="left", fontsize=10)
    share.set_xlabel("worker-hours", fontsize=9)
    share.set_xlim(0, max(each.worker_hours for each in report.arms.values()) * 1.25)
    share.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=1))
    for axes in (demand, workers, share):
        axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        axes.spines[["top"]].set_visible(False)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    figure.savefig(path)
