"""One picture of a replay: latency distributions, cache hits against the ideal, goodput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from controlplane.replay.report import Report, Run, Status, Targets

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's palette: told apart by colour-blind readers too."""

_GREY = "#555555"
_AXIS_FROM = 0.005
"""The latency axes begin at this quantile, so that a few lucky requests do not stretch them."""


def save(path: Path, report: Report, runs: Sequence[Run], targets: Targets) -> None:
    """Write the picture as a PNG (or what the suffix says). Raises OSError, ValueError."""
    figure = Figure(figsize=(11, 7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(report), fontsize=12, x=0.008, ha="left")
    grid = figure.subplot_mosaic([["ttft", "tpot"], ["hits", "goodput"]], height_ratios=[5, 3])
    done = [[o for o in run.outcomes if o.status is Status.COMPLETED] for run in runs]
    names = [run.policy for run in runs]
    ttfts = [[o.ttft_ms for o in outcomes] for outcomes in done]
    tpots = [[o.tpot_ms for o in outcomes if o.tpot_ms is not None] for outcomes in done]
    _distributions(grid["ttft"], "Time to first token", names, ttfts, targets.ttft_ms)
    _distributions(grid["tpot"], "Time per output token", names, tpots, targets.tpot_ms)
    grid["ttft"].legend(loc="upper left", frameon=False, fontsize=9)
    figures = [report.policies[name] for name in names]
    hits, goodputs = [f.hit_rate for f in figures], [f.goodput for f in figures]
    _bars(grid["hits"], "Prompt blocks found in cache", names, hits)
    _ideal_line(grid["hits"], figures[0].ideal_hit_rate)
    _bars(grid["goodput"], "Goodput: requests within both targets", names, goodputs)
    figure.savefig(path)


def _distributions(
    axes: Axes, title: str, names: list[str], values: list[list[float]], target_ms: float
) -> None:
    """The share of served requests at or below each latency, on a logarithmic axis."""
    axes.set_title(title, loc="left", fontsize=10)
    for name, colour, sample in zip(names, _colours(names), values, strict=True):
        ordered = np.sort(np.asarray(sample, dtype=np.float64))
        shares = np.arange(1, len(ordered) + 1) / max(1, len(ordered))
        axes.step(ordered, shares, where="post", color=colour, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    every = np.concatenate([np.asarray(sample, dtype=np.float64) for sample in values])
    every = every if len(every) else np.array([target_ms])
    left = max(0.01, min(float(np.quantile(every, _AXIS_FROM)), target_ms) * 0.8)
    right = max(float(every.max()), target_ms) * 1.2
    axes.set_xlim(left, right)
    axes.axvline(target_ms, color=_GREY, linestyle="--", linewidth=1)
    side = "right" if target_ms > (left * right) ** 0.5 else "left"
    axes.text(target_ms, 0.02, f" target {_duration(target_ms)} ", ha=side, color=_GREY, fontsize=8)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ms, _: _duration(ms)))
    axes.set_ylabel("served requests", fontsize=9)
    tidy(axes, grid="both")


def _bars(axes: Axes, title: str, names: list[str], shares: list[float]) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    rows = range(len(names))
    axes.barh(rows, shares, color=_colours(names), height=0.62)
    axes.set_yticks(rows, names)
    axes.invert_yaxis()
    for row, share in zip(rows, shares, strict=True):
        axes.text(share, row, f" {share:.1%}", va="center", fontsize=9)
    axes.set_xlim(0, max(0.05, *shares) * 1.18)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    tidy(axes, grid="x")


def _ideal_line(axes: Axes, ideal: float) -> None:
    axes.axvline(ideal, color=_GREY, linestyle="--", linewidth=1)
    axes.set_xlim(right=max(axes.get_xlim()[1], ideal * 1.18))
    above = axes.get_xaxis_transform()
    text = f" ideal {ideal:.1%}"
    axes.text(ideal, 0.97, text, color=_GREY, fontsize=8, va="top", transform=above)


def tidy(axes: Axes, grid: Literal["both", "x"]) -> None:
    """No frame, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis=grid, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _colours(names: list[str]) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(names))]


def _duration(ms: float) -> str:
    return f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"


def _title(report: Report) -> str:
    words = [f"{report.trace.name}: {report.trace.requests:,} requests"]
    settings = report.settings
    if "workers" in settings:
        words.append(f"{settings['workers']} engines ({settings['profile']})")
    else:
        words.append(f"live at {settings['url']}, speed {settings['speed']:g}")
    return ", ".join(words)
