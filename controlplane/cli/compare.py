"""`tokenplane compare --profiles h100,h200,b200 TRACE`: the same trace on other hardware.

docs/hardware.md says what is asked and how far the answers can be believed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from controlplane.cli.options import Names, written_arm
from controlplane.cli.traces import (
    TraceSettings,
    run_replay,
    tell_losses,
    write_json,
)
from controlplane.replay.compare import Answer, Comparison, Question, compare
from controlplane.replay.hardware import timings
from controlplane.replay.report import trace_report
from controlplane.replay.trace import Trace
from controlplane.runtime.process import EXIT_FAILED, EXIT_OK
from proto.hardware import BadHardware, load_catalogue

PROG = "tokenplane compare"


class CompareSettings(TraceSettings):
    """Replay a trace on engines of several kinds of hardware, each alone."""

    profiles: Names[str] = Field(
        ("a100", "h100", "h200", "b200", "gb200"), description="what to compare"
    )
    workers: int = Field(8, ge=1, le=1024, description="of each at an equal fleet")
    hold: float = Field(
        0.99, gt=0, le=1, description="equal SLO: share of requests that keep both targets"
    )
    policy: Annotated[str, AfterValidator(written_arm)] = Field(
        "slo", description="the router's policy"
    )

    @model_validator(mode="after")
    def _profiles_exist(self) -> Self:
        try:
            timings(self.profiles, load_catalogue(self.hardware_file))
        except BadHardware as error:
            raise ValueError(str(error)) from error
        return self


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_replay(PROG, CompareSettings, _compare, argv)


def _compare(settings: CompareSettings) -> int:
    notes = Console(stderr=True)
    trace = settings.load_trace()
    tell_losses(settings.trace, trace, notes)
    if not trace.requests:
        print(f"{PROG}: {settings.trace} has no usable request", file=sys.stderr)
        return EXIT_FAILED
    answers = _answers(settings, trace, notes)
    told = settings.told("workers", "hold", "policy", "hardware_file")
    comparison = Comparison(answers, trace_report(trace), told)
    # Here and not above: drawing takes longer to import than a small replay to run.
    from controlplane.replay import compare_report

    for table in compare_report.tables(comparison):
        Console().print(table)
    if any(answer.derived for answer in answers):
        notes.print("* nobody measured it: scaled from the H100 (see docs/hardware.md)")
    write_json(settings.json_out, comparison)
    if settings.plot is not None:
        compare_report.save(settings.plot, comparison)
    return EXIT_OK


def _answers(settings: CompareSettings, trace: Trace, notes: Console) -> list[Answer]:
    """Compare, telling how many requests have been replayed on each."""
    catalogue = load_catalogue(settings.hardware_file)
    question = Question(
        requests=trace.requests,
        names=settings.names(trace),
        block_tokens=settings.block_size,
        targets=settings.targets,
        workers=settings.workers,
        hold=settings.hold,
        policy=settings.policy,
        catalogue=catalogue,
    )
    columns = (TextColumn("{task.description}: {task.completed:,} requests replayed"),)
    with Progress(*columns, TimeElapsedColumn(), console=notes) as progress:
        bars = [progress.add_task(name, total=None) for name in settings.profiles]

        def on_progress(number: int, ended: int) -> None:
            progress.update(bars[number], completed=ended)

        return compare(question, timings(settings.profiles, catalogue), on_progress)
