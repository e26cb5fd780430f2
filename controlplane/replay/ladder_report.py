"""The ladder's figures for readers: one table a trace, and the verdict of every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from controlplane.replay.ladder import MARGIN, SUBJECT, Score, Verdict, by_arm
from controlplane.replay.report import PolicyReport, Setting

HEADING = (
    "In each cell: goodput; TTFT in seconds, p50/p99; TPOT in ms, p50; requests rejected+failed."
)


class LadderReport(msgspec.Struct, frozen=True):
    """Everything, as `--json` writes it."""

    settings: Mapping[str, Setting]
    scores: list[Score]
    verdicts: list[Verdict]


def tables(report: LadderReport) -> str:
    """All of it as Markdown, which reads well on a terminal, too."""
    traces = list(dict.fromkeys(score.trace for score in report.scores))
    parts = [HEADING]
    parts += ["\n".join(_trace_table(report.scores, trace)) for trace in traces]
    if report.verdicts:
        parts.append("\n".join(_verdict_table(report.verdicts)))
    return "\n\n".join(parts) + "\n"


def summary(verdicts: Sequence[Verdict]) -> str:
    """One line."""
    near = sum(v.near_best for v in verdicts)
    above = sum(v.above_blind for v in verdicts)
    return (
        f"{SUBJECT} is within {MARGIN:.0%} of the best arm in {near} of {len(verdicts)} cells,"
        f" and not below round robin in {above}"
    )


def _trace_table(scores: Sequence[Score], trace: str) -> list[str]:
    loads = list(dict.fromkeys(score.load for score in scores if score.trace == trace))
    arms = list(dict.fromkeys(score.arm for score in scores if score.trace == trace))
    cells = [by_arm(scores, trace, load) for load in loads]
    rows = [[name, *(_cell(cell[name]) if name in cell else "" for cell in cells)] for name in arms]
    header = [trace, *(f"{load:.0%} load" for load in loads)]
    return _aligned([header, *rows])


def _cell(figures: PolicyReport) -> str:
    """`HEADING`."""
    ttft, tpot = figures.ttft_ms, figures.tpot_ms
    lost = f"{figures.rejected}+{figures.failed}"
    seconds = "-" if ttft.p50 is None else f"{ttft.p50 / 1000:.2f}"
    seconds += "/-" if ttft.p99 is None else f"/{ttft.p99 / 1000:.1f}"
    pace = "-" if tpot.p50 is None else f"{tpot.p50:.0f}"
    return f"{figures.goodput:6.1%} {seconds:>10} {pace:>4} {lost:>4}"


def _verdict_table(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [["cell", SUBJECT, "best other arm", "", "round robin", "verdict"]]
    for v in verdicts:
        missed = [] if v.near_best else [f"more than {MARGIN:.0%} below the best"]
        missed += [] if v.above_blind else ["below round robin"]
        rows.append(
            [
                f"{v.trace}, {v.load:.0%}",
                f"{v.subject:.1%}",
                v.best_arm,
                f"{v.best:.1%}",
                f"{v.blind:.1%}",
                " and ".join(missed) or "good",
            ]
        )
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table with columns of even width; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]
