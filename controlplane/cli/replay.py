"""`tokenplane replay TRACE`: a trace through the router, in virtual time or through a live cluster.

Virtual time runs the real router core in front of simulated engines (see docs/replay.md); live
mode sends the same requests over HTTP to a cluster that is up, `--speed` times as fast.
"""

from __future__ import annotations

import secrets
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Annotated, Literal, Self

import anyio
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from controlplane.cli import ladder
from controlplane.cli.options import Names, written_arm
from controlplane.cli.traces import (
    REASONS_SHOWN,
    TraceSettings,
    run_replay,
    tell_losses,
    write_json,
)
from controlplane.replay.arms import arm
from controlplane.replay.handover import Link
from controlplane.replay.hardware import dollars_per_hour, timings
from controlplane.replay.live import LiveTarget, NotServing, run_live, served_model
from controlplane.replay.parallel import run_all
from controlplane.replay.report import (
    Report,
    Run,
    Setting,
    ideal_hit_rate,
    policy_report,
    table,
    trace_report,
)
from controlplane.replay.simulate import Scenario, simulate
from controlplane.replay.trace import Trace
from controlplane.router.plugins import installed
from controlplane.runtime.process import EXIT_FAILED, EXIT_OK
from controlplane.transfer.cost import Choice
from controlplane.transfer.settings import TransferSettings
from proto.hardware import BadHardware, load_catalogue
from proto.hashing import Words
from proto.roles import parse_roles
from proto.wire.http import HttpClient
from workers.sim.timing import H100, Profile

PROG = "tokenplane replay"

OnProgress = Callable[[str, int], None]
"""Policy, and how many of its requests have ended."""

_VIRTUAL = (
    "workers",
    "roles",
    "kv_gb_s",
    "prefill",
    "profile",
    "hardware_file",
    "blocks",
    "event_delay_ms",
)
_LIVE = ("url", "model", "concurrency", "timeout_s")


def _speed(value: object) -> object:
    try:
        ok = value == "virtual" or float(str(value)) > 0
    except ValueError:
        ok = False
    if not ok:
        raise ValueError("either `virtual`, or how many times faster than the trace: above 0")
    return value


def _url(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return url


class ReplaySettings(TraceSettings):
    """Replay a Mooncake-format trace and compare routing policies. With `--ladder` another command:
    compare every policy on many kinds of traffic (`--ladder --help`)."""

    policy: Names[Annotated[str, AfterValidator(written_arm)]] = Field(
        ("round_robin", "kv", "slo"),
        description="policies to compare, separated by commas; virtual: also arms, such as"
        " kv:prefill_weight=2 or oracle",
    )
    speed: Annotated[float | Literal["virtual"], BeforeValidator(_speed)] = Field(
        "virtual", description="`virtual`, or N: live over HTTP, N times as fast as the trace"
    )
    seed: int | None = Field(
        None, ge=0, description="of all dice; if not given 0 in virtual time, a new one live"
    )

    workers: int = Field(8, ge=1, le=4096, description="virtual: engines")
    roles: str | None = Field(
        None,
        description="virtual: split the fleet, such as 2P2D: two engines prefill, two decode; every"
        " policy is also replayed on as many engines that do both",
    )
    kv_gb_s: float = Field(
        50.0, gt=0, description="virtual: gigabytes of KV a second from one engine to another"
    )
    prefill: Choice = Field(
        Choice.COST, description="virtual: when a split fleet prefills elsewhere, or does not"
    )
    profile: Names[str] = Field(
        (H100.name,),
        description="virtual: engine timing, such as h100, h200 or laptop; of several, separated"
        " by commas, the engines have one in turn",
    )
    blocks: int | None = Field(
        None, ge=1, description="virtual: KV blocks of an engine; default: what the profile holds"
    )
    event_delay_ms: float = Field(
        5.0, ge=0, description="virtual: until the router hears what an agent or gateway says"
    )

    url: Annotated[str, AfterValidator(_url)] = Field(
        "http://127.0.0.1:8000", description="live: the gateway"
    )
    model: str | None = Field(None, description="live: model; default: the only one served")
    concurrency: int = Field(1024, ge=1, description="live: requests open at once, at most")
    timeout_s: float = Field(300.0, gt=0, description="live: longest silence of a request")

    @model_validator(mode="after")
    def _live_knows_policies_only(self) -> Self:
        for name in self.policy if self.live else ():
            if name not in installed().policies:
                raise ValueError(f"{name} is no policy; through a cluster there are no other arms")
        return self

    @model_validator(mode="before")
    @classmethod
    def _arms_of_roles(cls, given: dict[str, object]) -> dict[str, object]:
        """Each policy on both fleets, with as many workers."""
        if not (roles := given.get("roles")):
            return given
        policies = given.get("policy") or ("kv",)
        names = policies.split(",") if isinstance(policies, str) else list(map(str, policies))  # type: ignore[call-overload]
        both = [arm for name in names for arm in (name, f"{name}:roles={roles}")]
        return {**given, "policy": both, "workers": len(parse_roles(str(roles)))}

    @model_validator(mode="after")
    def _profiles_exist(self) -> Self:
        try:
            self.timings()
        except BadHardware as error:
            raise ValueError(str(error)) from error
        return self

    def timings(self) -> tuple[Profile, ...]:
        """Of the engines in turn. Raises ValueError, `BadHardware`."""
        return timings(self.profile, load_catalogue(self.hardware_file))

    @property
    def live(self) -> bool:
        """Through a cluster, and not in virtual time."""
        return self.speed != "virtual"

    def told_of_all(self) -> dict[str, Setting]:
        """What had a say in the figures, for the report."""
        return self.told("speed", "seed", *(_LIVE if self.live else _VIRTUAL))


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code. `--ladder` is a command of its own."""
    if "--ladder" in argv:
        return ladder.main([word for word in argv if word != "--ladder"])
    return run_replay(PROG, ReplaySettings, _replay, argv, failures=(NotServing,))


def _replay(settings: ReplaySettings) -> int:
    notes = Console(stderr=True)
    trace = settings.load_trace()
    tell_losses(settings.trace, trace, notes)
    if not trace.requests:
        print(f"{PROG}: {settings.trace} has no usable request", file=sys.stderr)
        return EXIT_FAILED
    if settings.seed is None:
        # Live, tokens of an earlier replay may still lie in the engines' caches: take others.
        seed = secrets.randbelow(1 << 31) if settings.live else 0
        settings = settings.model_copy(update={"seed": seed})
    names = settings.names(trace)
    runs = _runs(settings, trace, names, notes)
    report = _report(settings, trace, names, runs)
    Console().print(table(report))
    _tell_failures(runs, notes)
    _save(settings, report, runs)
    return EXIT_OK


def _runs(settings: ReplaySettings, trace: Trace, names: list[Words], notes: Console) -> list[Run]:
    """Replay under every policy, with a bar for each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=notes) as progress:
        bars = {p: progress.add_task(p, total=len(trace.requests)) for p in settings.policy}

        def on_progress(policy: str, ended: int) -> None:
            progress.update(bars[policy], completed=ended)

        if settings.live:
            return anyio.run(_live_runs, settings, trace, on_progress)
        scenario = _scenario(settings, trace, names)
        targets = settings.targets
        jobs = [partial(simulate, scenario, arm(policy, targets)) for policy in settings.policy]
        return run_all(jobs, lambda job, ended: on_progress(settings.policy[job], ended))


def _scenario(settings: ReplaySettings, trace: Trace, names: list[Words]) -> Scenario:
    assert settings.seed is not None
    fleet = tuple(islice(cycle(settings.timings()), settings.workers))
    return Scenario(
        requests=trace.requests,
        names=names,
        profiles=fleet,
        block_tokens=settings.block_size,
        targets=settings.targets,
        blocks=settings.blocks,
        event_delay_s=settings.event_delay_ms / 1000,
        dollars_per_hour=dollars_per_hour(fleet, load_catalogue(settings.hardware_file)),
        transfer=TransferSettings(choice=settings.prefill),
        link=Link(settings.kv_gb_s * 1e9),
        seed=settings.seed,
    )


async def _live_runs(settings: ReplaySettings, trace: Trace, on_progress: OnProgress) -> list[Run]:
    """One policy after the other, through the same cluster."""
    assert settings.seed is not None
    runs = []
    async with HttpClient() as http:
        model = await served_model(http, settings.url, settings.model)
        for nth, policy in enumerate(settings.policy):
            target = LiveTarget(
                url=settings.url,
                model=model,
                policy=policy,
                block_tokens=settings.block_size,
                speed=float(settings.speed),
                concurrency=settings.concurrency,
                timeout_s=settings.timeout_s,
                salt=(settings.seed << 16) + nth + 1,
            )
            runs.append(await run_live(http, target, trace.requests, partial(on_progress, policy)))
    return runs


def _report(settings: ReplaySettings, trace: Trace, names: list[Words], runs: list[Run]) -> Report:
    ideal = ideal_hit_rate(names)
    targets = settings.targets
    return Report(
        policies={run.policy: policy_report(run, ideal, targets) for run in runs},
        trace=trace_report(trace),
        settings=settings.told_of_all(),
    )


def _tell_failures(runs: list[Run], notes: Console) -> None:
    for run in runs:
        reasons = Counter(outcome.detail for outcome in run.outcomes if outcome.detail)
        for reason, count in reasons.most_common(REASONS_SHOWN):
            notes.print(f"{run.policy}: {count:,} times: {reason}", markup=False)


def _save(settings: ReplaySettings, report: Report, runs: list[Run]) -> None:
    write_json(settings.json_out, report)
    if settings.plot is not None:
        # Here and not above: drawing takes longer to import than a small replay to run.
        from controlplane.replay.plot import save

        save(settings.plot, report, runs, settings.targets)
