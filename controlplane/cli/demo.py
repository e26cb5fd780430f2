"""`tokenplane demo`: the same conversations under two policies, on a live cluster, side by side."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from controlplane.cli.run import run_interactive
from controlplane.local.cluster import LocalCluster, run_cluster
from controlplane.local.options import ClusterOptions
from controlplane.replay.generate import Workload, generate
from controlplane.replay.live import LiveTarget, run_live
from controlplane.replay.names import PromptNamer
from controlplane.replay.report import (
    Outcome,
    Report,
    Run,
    Targets,
    ideal_hit_rate,
    policy_report,
    table,
    trace_report,
)
from controlplane.replay.trace import Trace, TraceRequest
from controlplane.runtime.service import CannotServe
from controlplane.runtime.settings import CommandSettings
from proto.hashing import BlockHasher, Scope
from proto.wire.http import HttpClient
from proto.wire.ports import Http

PROG = "tokenplane demo"
POLICIES = ("round_robin", "kv")
BLOCK_TOKENS = 16
CONTEXT_TOKENS = 12_000
KV_BLOCKS = 3_000
"""Of each engine: too few for every conversation to be cached everywhere, as in a real fleet."""

WORKLOAD = Workload(
    conversations=60,
    rate=6.0,
    turns=4.0,
    think_s=1.5,
    ms_per_output_token=5.0,
    system_prompts=12,
    system_blocks_min=2,
    system_blocks_max=8,
    message_tokens=300.0,
    output_tokens=40.0,
    context_tokens=CONTEXT_TOKENS,
)
"""Some 240 requests in half a minute: chats that resend their past, over a few system prompts."""

TARGETS = Targets(ttft_ms=500.0, tpot_ms=50.0)


class Unwritable(CannotServe):
    """The figures cannot be written where they are wanted."""


class Demo(CommandSettings):
    """Show KV-aware routing against round robin on a live cluster; takes about a minute."""

    model_config = SettingsConfigDict(cli_kebab_case=True)

    engines: int = Field(4, ge=2, le=16, description="how many simulated engines")
    seed: int = Field(1, ge=0, description="of the conversations")
    out: Path = Field(Path("demo-out"), description="directory for the plot and the figures")
    as_json: bool = Field(False, alias="json", description="the figures as JSON on stdout")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return run_interactive(PROG, Demo, demo, argv)


async def demo(options: Demo) -> None:
    """Start a cluster, send it the same conversations under each policy, show what came of it.
    Raises `Unwritable`, and what `run_cluster` does."""
    console = Console(stderr=options.as_json)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Unwritable(f"cannot make the folder {options.out}: {error.strerror}") from error
    requests = list(generate(WORKLOAD, random.Random(options.seed)))
    console.print(
        f"{len(requests)} requests of {WORKLOAD.conversations} conversations that share "
        f"{WORKLOAD.system_prompts} system prompts; {options.engines} simulated engines\n"
        "starting NATS, etcd, engines, agents, router and gateway ..."
    )
    cluster_options = ClusterOptions(
        name="demo",
        port=0,
        engines=options.engines,
        block_tokens=BLOCK_TOKENS,
        blocks=KV_BLOCKS,
        context_tokens=CONTEXT_TOKENS,
    )
    async with HttpClient() as http, run_cluster(cluster_options, http) as cluster:
        console.print(f"ready at {cluster.url}/v1; sending the same requests under each policy")
        runs = await _compare(cluster, http, requests, console)
    report = _report(options, requests, runs)
    _show(report, runs, options.out, console)
    if options.as_json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")


async def _compare(
    cluster: LocalCluster, http: Http, requests: Sequence[TraceRequest], console: Console
) -> list[Run]:
    """One run a policy, each with token ids of its own: none profits from another's cache."""
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn())
    runs = []
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for nth, policy in enumerate(POLICIES):
            bar = progress.add_task(policy, total=len(requests))
            target = LiveTarget(cluster.url, cluster.model, policy, BLOCK_TOKENS, salt=nth + 1)
            runs.append(await run_live(http, target, requests, partial(_advance, progress, bar)))
    return runs


def _advance(progress: Progress, bar: TaskID, _: Outcome) -> None:
    progress.advance(bar)


def _report(options: Demo, requests: list[TraceRequest], runs: list[Run]) -> Report:
    hasher = BlockHasher(b"demo", Scope("demo"), BLOCK_TOKENS)
    ideal = ideal_hit_rate(list(PromptNamer(hasher).names(requests)))
    return Report(
        policies={run.policy: policy_report(run, ideal, TARGETS) for run in runs},
        trace=trace_report(Trace("generated conversations", requests)),
        settings={"workers": options.engines, "profile": "laptop", "seed": options.seed},
    )


def _show(report: Report, runs: Sequence[Run], out: Path, console: Console) -> None:
    from controlplane.replay.plot import save

    console.print(table(report))
    figures, picture = out / "demo.json", out / "demo.png"
    figures.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
    save(picture, report, runs, TARGETS)
    console.print(f"figures: {figures}   plot: {picture}")
    blind, aware = (report.policies[name] for name in POLICIES)
    console.print(
        f"[bold]kv found {aware.hit_rate:.0%} of the prompt blocks in cache, "
        f"round robin {blind.hit_rate:.0%}; a cache without bounds would find "
        f"{aware.ideal_hit_rate:.0%}[/]"
    )
