"""`tokenplane plan --replay TRACE`: our planner against other rules, in virtual time.

TRACE is a file in Mooncake's format, or one of the made-up hours of `controlplane.replay.shapes`.
Every arm decides how many engines there are; the router in front of them is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from controlplane.cli.options import Names, OutPath, PlotPath, written_arm
from controlplane.planner.settings import PlannerSettings
from controlplane.replay.elastic import Elastic, ElasticRun
from controlplane.replay.fleet import MODEL
from controlplane.replay.hindsight import Contest
from controlplane.replay.names import PromptNamer, check_block_size
from controlplane.replay.planning import ARMS, PlanReport, arm_report, compete
from controlplane.replay.report import Targets
from controlplane.replay.shapes import SHAPES, shaped
from controlplane.replay.simulate import Scenario
from controlplane.replay.trace import TraceRequest, TraceUnreadable, load_trace
from controlplane.runtime.process import (
    EXIT_BAD_SETTINGS,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
)
from controlplane.runtime.settings import CommandSettings, SettingsError, load
from proto.hashing import BlockHasher, Scope
from workers.sim.timing import H100, PROFILES

PROG = "tokenplane plan"
UNITS_MS = {"ms": 1.0, "s": 1000.0}


def slo(text: str) -> Targets:
    """`ttft=500ms,tpot=50ms` as targets. ValueError says what is wrong."""
    given: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        unit = next((u for u in UNITS_MS if value.endswith(u)), None)
        if not equals or name not in ("ttft", "tpot") or unit is None:
            raise ValueError(f"write ttft=500ms,tpot=50ms and not {part.strip()!r}")
        given[name] = float(value.removesuffix(unit)) * UNITS_MS[unit]
        if not given[name] > 0:
            raise ValueError(f"{name} must be above 0")
    if len(given) < 2:
        raise ValueError("both ttft and tpot are needed, such as ttft=500ms,tpot=50ms")
    return Targets(given["ttft"], given["tpot"])


def _slo(text: str) -> str:
    slo(text)
    return text


def _profile(name: str) -> str:
    if name not in PROFILES:
        raise ValueError(f"there is no profile {name!r}; there are: {', '.join(PROFILES)}")
    return name


def _arm(name: str) -> str:
    if name not in ARMS:
        raise ValueError(f"there is no arm {name!r}; there are: {', '.join(ARMS)}")
    return name


class PlanSettings(CommandSettings):
    """Compare our planner with other rules on a trace."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    replay: str = Field(description=f"trace file, or one of {', '.join(SHAPES)}")
    rate_scale: float = Field(1.0, gt=0, description="arrivals so many times as fast")
    slo: Annotated[str, AfterValidator(_slo)] = Field(
        "ttft=5s,tpot=100ms", description="what is promised, such as ttft=500ms,tpot=50ms"
    )
    goal: float = Field(0.99, gt=0.5, lt=1, description="share of requests to keep both for")
    arms: Names[Annotated[str, AfterValidator(_arm)]] = Field(
        ARMS, description="who is compared, separated by commas"
    )
    json_out: OutPath | None = Field(None, alias="json", description="write the figures here")
    plot: PlotPath | None = Field(None, description="draw the figures here (.png)")
    profile: Annotated[str, AfterValidator(_profile)] = Field(
        H100.name, description=f"engine timing, of {', '.join(PROFILES)}"
    )
    least: int = Field(1, ge=1, le=4096, description="engines, at least")
    most: int = Field(40, ge=1, le=4096, description="engines, at most")
    start_up_s: float = Field(30.0, ge=0, description="seconds until a new engine is ready")
    price: float = Field(1.0, ge=0, description="of an engine's hour")
    policy: Annotated[str, AfterValidator(written_arm)] = Field(
        "slo", description="the router's policy"
    )
    limit: int | None = Field(None, ge=1, description="replay the first N usable requests only")
    max_model_len: int = Field(
        131_072, ge=2, description="context; prompts that fill it are dropped"
    )
    block_size: Annotated[int, AfterValidator(check_block_size)] = Field(
        128, description="tokens in a KV block; must divide 512"
    )
    seed: int = Field(0, ge=0, description="of made-up hours, and of the router's dice")

    @property
    def targets(self) -> Targets:
        return slo(self.slo)


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    try:
        settings = load(PlanSettings, argv, prog=PROG)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_SETTINGS
    try:
        return _plan(settings)
    except (TraceUnreadable, OSError) as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _plan(settings: PlanSettings) -> int:
    requests = _requests(settings)
    if not requests:
        print(f"{PROG}: {settings.replay} has no usable request", file=sys.stderr)
        return EXIT_FAILED
    contest = contest_of(settings, requests)
    with _bars(len(requests)) as on_progress:
        runs, reachable, goal = compete(contest, settings.arms, on_progress)
    report = PlanReport(
        arms={name: arm_report(run, settings.targets) for name, run in runs.items()},
        trace=Path(settings.replay).name,
        requests=len(requests),
        ttft_ms=settings.targets.ttft_ms,
        tpot_ms=settings.targets.tpot_ms,
        goal=goal,
        reachable=reachable,
        settings=_told(settings),
    )
    Console().print(table(report))
    _save(settings, report, requests, runs)
    return EXIT_OK


def contest_of(settings: PlanSettings, requests: list[TraceRequest]) -> Contest:
    """What is compared on."""
    targets = settings.targets
    hasher = BlockHasher(b"replay", Scope(MODEL), settings.block_size)
    scenario = Scenario(
        requests=requests,
        names=list(PromptNamer(hasher).names(requests)),
        profiles=(PROFILES[settings.profile],),
        block_tokens=settings.block_size,
        targets=targets,
        seed=settings.seed,
    )
    planner = PlannerSettings(
        ttft_ms=targets.ttft_ms,
        tpot_ms=targets.tpot_ms,
        goal=settings.goal,
        least=settings.least,
        most=settings.most,
        start_s=max(1.0, settings.start_up_s),
    )
    elastic = Elastic(
        settings.least, settings.least, settings.most, settings.start_up_s, settings.price
    )
    return Contest(scenario, elastic, planner, settings.goal, settings.policy)


def table(report: PlanReport) -> Table:
    """For the terminal: one row an arm."""
    title = (
        f"{report.trace}: {report.requests:,} requests, TTFT {report.ttft_ms:g} ms,"
        f" TPOT {report.tpot_ms:g} ms, {report.reachable:.2%} within reach"
    )
    grid = Table(title=title, min_width=len(title), box=SIMPLE_HEAD, padding=0)
    grid.add_column("", no_wrap=True)
    for name in (
        "attainment",
        "TTFT",
        "TPOT",
        "hours",
        "cost",
        "workers",
        "changes",
        "failed",
    ):
        grid.add_column(name, justify="right", no_wrap=True)
    for name, each in report.arms.items():
        grid.add_row(
            name,
            f"{each.attainment:.2%}",
            f"{each.ttft_met:.2%}",
            f"{each.tpot_met:.2%}",
            f"{each.worker_hours:.2f}",
            f"{each.cost:.2f}",
            f"{each.workers_min}-{each.workers_max}",
            str(each.scale_actions),
            str(each.failed),
        )
    return grid


def _requests(settings: PlanSettings) -> list[TraceRequest]:
    if settings.replay in SHAPES:
        return shaped(settings.replay, settings.seed, settings.rate_scale)[: settings.limit]
    trace = load_trace(
        Path(settings.replay),
        limit=settings.limit,
        context_tokens=settings.max_model_len,
        rate_scale=settings.rate_scale,
    )
    if trace.malformed or trace.too_long:
        print(
            f"{PROG}: {trace.malformed:,} malformed lines and {trace.too_long:,} prompts over the"
            " context dropped",
            file=sys.stderr,
        )
    return trace.requests


def _told(settings: PlanSettings) -> dict[str, str | int | float]:
    names = (
        "rate_scale", "profile", "least", "most", "start_up_s", "price", "policy", "block_size",
        "seed",
    )  # fmt: skip
    return {name: getattr(settings, name) for name in names}


class _bars:
    """A bar for each replay that is under way."""

    def __init__(self, requests: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
        )
        self._requests = requests
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Callable[[str, int], None]:
        self._progress.start()
        return self._told

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _told(self, name: str, ended: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=self._requests)
        self._progress.update(self._tasks[name], completed=ended)  # type: ignore[arg-type]


def _save(
    settings: PlanSettings,
    report: PlanReport,
    requests: Sequence[TraceRequest],
    runs: Mapping[str, ElasticRun],
) -> None:
    if settings.json_out is not None:
        text = msgspec.json.format(msgspec.json.encode(report), indent=2)
        settings.json_out.write_bytes(text + b"\n")
    if settings.plot is not None:
        # Here and not above: drawing takes longer to import than a small replay to run.
        from controlplane.replay.planning_plot import save

        save(settings.plot, report, requests, runs)
