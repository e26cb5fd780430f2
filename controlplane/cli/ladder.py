"""`tokenplane replay --ladder [TRACE]`: every arm on every trace at every load.

docs/quality.md says what that is and what came of it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from controlplane.cli.options import Names, OutPath, PlotPath, written_arm
from controlplane.replay.cells import LOADS, Course
from controlplane.replay.ladder import RUNGS, Score, climb, plan, verdicts, with_best
from controlplane.replay.ladder_report import LadderReport, summary, tables
from controlplane.replay.report import Setting, Targets
from controlplane.replay.trace import TraceUnreadable
from controlplane.runtime.process import (
    EXIT_BAD_SETTINGS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
)
from controlplane.runtime.settings import CommandSettings, SettingsError, load

PROG = "tokenplane replay --ladder"
QUICK_REQUESTS, QUICK_LOADS = 300, (0.8, 1.2)


class LadderSettings(CommandSettings):
    """Compare routing policies on generated traces, and on one of yours, at several loads."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    trace: CliPositionalArg[Path | None] = Field(
        None, description="a recorded trace to add: .jsonl or .jsonl.gz"
    )
    arms: Names[Annotated[str, AfterValidator(written_arm)]] = Field(
        RUNGS, description="arms to compare, separated by commas"
    )
    traces: Names[str] = Field((), description="these traces only, by name; default: all")
    loads: Names[Annotated[float, Field(gt=0)]] = Field(
        LOADS, description="shares of what the fleet can carry"
    )
    requests: int = Field(1_500, ge=1, description="requests of each run")
    workers: int = Field(8, ge=2, le=4096, description="engines")
    ttft_target_ms: float = Field(5_000.0, gt=0, description="goodput counts up to here")
    tpot_target_ms: float = Field(
        100.0, gt=0, description="goodput counts up to here; 100 % load is what can just keep it"
    )
    event_delay_ms: float = Field(
        5.0, ge=0, description="until the router hears what an agent or gateway says"
    )
    seed: int = Field(0, ge=0, description="of all dice")
    quick: bool = Field(
        False, description=f"{QUICK_REQUESTS} requests a run and two loads: to see that it works"
    )
    json_out: OutPath | None = Field(None, alias="json", description="write the figures here")
    table: OutPath | None = Field(None, description="write the tables here (Markdown)")
    plot: PlotPath | None = Field(None, description="draw the figures here (.png)")

    def course(self) -> Course:
        """What is the same for all runs."""
        return Course(
            requests=QUICK_REQUESTS if self.quick else self.requests,
            workers=self.workers,
            targets=Targets(self.ttft_target_ms, self.tpot_target_ms),
            recorded=self.trace,
            event_delay_s=self.event_delay_ms / 1000,
            seed=self.seed,
        )

    def told(self) -> dict[str, Setting]:
        """What had a say in the figures, for the report."""
        course = self.course()
        return {
            "requests": course.requests,
            "workers": self.workers,
            "ttft_target_ms": self.ttft_target_ms,
            "tpot_target_ms": self.tpot_target_ms,
            "event_delay_ms": self.event_delay_ms,
            "seed": self.seed,
            "recorded": self.trace.name if self.trace else None,
        }


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(LadderSettings, argv, prog=PROG)
        report = _report(settings)
        _save(settings, report)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except (TraceUnreadable, ValueError, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(tables(report))
    if report.verdicts:
        print(summary(report.verdicts))
    return EXIT_OK


def _report(settings: LadderSettings) -> LadderReport:
    scores = with_best(_scores(settings))
    return LadderReport(settings.told(), scores, verdicts(scores))


def _scores(settings: LadderSettings) -> list[Score]:
    course = settings.course()
    loads = QUICK_LOADS if settings.quick else settings.loads
    runs = plan(course.chosen(settings.traces), loads, settings.arms)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{len(runs)} runs", total=len(runs) * course.requests)
        return climb(course, runs, lambda ended: progress.update(bar, completed=ended))


def _save(settings: LadderSettings, report: LadderReport) -> None:
    if settings.json_out is not None:
        text = msgspec.json.format(msgspec.json.encode(report), indent=2)
        settings.json_out.write_bytes(text + b"\n")
    if settings.table is not None:
        settings.table.write_text(tables(report))
    if settings.plot is not None:
        # Here and not above: drawing takes longer to import than a small ladder to run.
        from controlplane.replay.ladder_plot import save

        save(settings.plot, report)
