"""`tokenplane speculation`: where speculative decoding helps, and from which batch on it hurts.

docs/speculation.md shows what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import msgspec
from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from controlplane.cli.options import Names, OutPath, PlotPath
from controlplane.cli.traces import (
    run_replay,
    write_json,
)
from controlplane.replay.crossing import Line, Point, Sweep, lines, sweep
from controlplane.replay.hardware import timing
from controlplane.replay.report import Targets
from controlplane.runtime.process import EXIT_OK
from controlplane.runtime.settings import CommandSettings
from proto.hardware import BadHardware, load_catalogue

PROG = "tokenplane speculation"


class SpeculationSettings(CommandSettings):
    """Replay the same requests with and without drafts, on one engine that gets busier."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    acceptance: Names[Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.3, 0.4, 0.5, 0.7), description="how often the target keeps a draft, separated by commas"
    )
    drafts: int = Field(5, ge=1, le=64, description="tokens drafted for each verification")
    draft_cost: float = Field(0.08, ge=0, description="a draft's step, in steps of the target")
    loads: Names[Annotated[float, Field(gt=0)]] = Field(
        (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
        description="shares of what the engine can carry without drafts",
    )
    profile: str = Field("h100", description="engine timing, such as h100 or h200")
    hardware_file: Path | None = Field(
        None, description="TOML with accelerators of your own (docs/hardware.md)"
    )
    requests: int = Field(400, ge=1, description="requests of each run")
    ttft_target_ms: float = Field(5_000.0, gt=0, description="goodput counts up to here")
    tpot_target_ms: float = Field(100.0, gt=0, description="goodput counts up to here")
    seed: int = Field(0, ge=0, description="of all dice")
    json_out: OutPath | None = Field(None, alias="json", description="write the figures here")
    plot: PlotPath | None = Field(None, description="draw the figures here (.png)")

    @model_validator(mode="after")
    def _profile_exists(self) -> Self:
        try:
            self.sweep()
        except BadHardware as error:
            raise ValueError(str(error)) from error
        return self

    def sweep(self) -> Sweep:
        """What is to be replayed. Raises ValueError, `BadHardware`."""
        return Sweep(
            profile=timing(self.profile, load_catalogue(self.hardware_file)),
            acceptances=self.acceptance,
            loads=self.loads,
            drafts=self.drafts,
            draft_cost=self.draft_cost,
            requests=self.requests,
            targets=Targets(self.ttft_target_ms, self.tpot_target_ms),
            seed=self.seed,
        )


class CrossingReport(msgspec.Struct, frozen=True):
    """Everything, as `--json` writes it."""

    lines: Sequence[Line]
    points: Sequence[Point]
    settings: dict[str, str | int | float | list[float]]


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_replay(PROG, SpeculationSettings, _sweep, argv, failures=(ValueError,))


def _sweep(settings: SpeculationSettings) -> int:
    of = settings.sweep()
    points = _points(of)
    found = lines(of, points)
    # Here and not above: drawing takes longer to import than a small replay to run.
    from controlplane.replay import crossing_report

    Console().print(crossing_report.table(of, found))
    report = CrossingReport(found, points, settings.model_dump(mode="json", exclude_none=True))
    write_json(settings.json_out, report)
    if settings.plot is not None:
        crossing_report.save(settings.plot, of, found)
    return EXIT_OK


def _points(of: Sweep) -> list[Point]:
    """All runs, with one bar."""
    runs = len(of.loads) * (1 + len(of.acceptances))
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{runs} runs", total=runs * of.requests)
        ended_of = [0] * runs

        def on_progress(number: int, ended: int) -> None:
            ended_of[number] = ended
            progress.update(bar, completed=sum(ended_of))

        return sweep(of, on_progress)
