"""What came of a replay: the same figures for every policy, as JSON and as a table.

- `ttft_ms`: from a request's arrival to its first token. Served requests only.
- `tpot_ms`: from the first token to the last, divided by the tokens after the first. Requests of
  one output token have none.
- `itl_ms`: between one token of a stream and its next, over all tokens of all streams; virtual time
  only. Unlike `tpot_ms` it shows a stream that stood still for a while.
- `hit_rate`: prompt blocks found in the engine's cache, of all full prompt blocks of the requests
  that were served.
- `ideal_hit_rate`: the same over the whole trace for one cache without bounds, delay or workers:
  a block hits if any earlier request had it. An engine always computes a prompt's last token, so
  it stays a little below.
- `goodput`: the share of all requests, rejected and failed ones included, that were completed
  within both targets.
- `cost_per_1k_tokens`: dollars for the whole fleet from first arrival to last token, idle or not,
  for a thousand tokens of completed answers; prompts are not counted. Absent without prices.
- `busy`: the share of the time from first arrival to last token that an engine was computing,
  averaged over engines; absent where engines cannot be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

import msgspec
import numpy as np
from rich.table import Table

from controlplane.replay.trace import Trace
from proto.hashing import Words

Setting = str | int | float | bool | None


class Status(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    REJECTED = "rejected"
    FAILED = "failed"


class Outcome(msgspec.Struct, frozen=True):
    """What became of one request; times and blocks are of completed ones."""

    status: Status
    ttft_ms: float = 0.0
    tpot_ms: float | None = None
    prompt_blocks: int = 0
    cached_blocks: int = 0
    output_tokens: int = 0
    detail: str = ""
    """Why it was not completed."""


class Run(msgspec.Struct, frozen=True):
    """The whole trace under one policy."""

    policy: str
    outcomes: list[Outcome]
    busy: float | None
    accelerator_seconds: float | None = None
    """Held from first arrival to last token."""
    dollars: float | None = None
    """What they cost."""
    busy_each: tuple[float, ...] = ()
    """As `busy`, engine by engine."""
    batch: float = 0.0
    """Sequences that were decoded in a step, on average."""
    accept_length: float = 1.0
    """Tokens that each of them got, on average; above 1 where there was speculation."""
    gaps: Sequence[tuple[float, int]] = ()
    """Times between tokens, in milliseconds, each with how many tokens had to wait for so long."""


class Targets(msgspec.Struct, frozen=True):
    """What a user was promised."""

    ttft_ms: float
    tpot_ms: float


class Distribution(msgspec.Struct, frozen=True):
    """Absent where nothing was measured."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None


class PolicyReport(msgspec.Struct, frozen=True):
    """The figures of one policy; the module says what each means."""

    completed: int
    rejected: int
    failed: int
    ttft_ms: Distribution
    tpot_ms: Distribution
    hit_rate: float
    ideal_hit_rate: float
    goodput: float
    busy: float | None
    accelerator_seconds: float | None = None
    cost_per_1k_tokens: float | None = None
    itl_ms: Distribution = Distribution()


class TraceReport(msgspec.Struct, frozen=True):
    """What was replayed, what was left out of the file, and why (the first reasons only)."""

    name: str
    requests: int
    input_tokens: int
    output_tokens: int
    span_s: float
    malformed: int
    too_long: int
    outputs_cut: int
    dropped: list[str]


class Report(msgspec.Struct, frozen=True):
    """Everything, as `--json` writes it."""

    policies: dict[str, PolicyReport]
    trace: TraceReport
    settings: Mapping[str, Setting]


def ideal_hit_rate(names: Sequence[Words]) -> float:
    """See above. Names are chained, so one met before had its whole prefix met before: hits are
    simply all blocks less the different ones."""
    blocks = sum(map(len, names))
    if blocks == 0:
        return 0.0
    return (blocks - len(np.unique(np.concatenate(names)))) / blocks


def policy_report(run: Run, ideal: float, targets: Targets) -> PolicyReport:
    """The figures of one run."""
    done = [o for o in run.outcomes if o.status is Status.COMPLETED]
    count = {status: sum(o.status is status for o in run.outcomes) for status in Status}
    blocks = sum(o.prompt_blocks for o in done)
    return PolicyReport(
        completed=count[Status.COMPLETED],
        rejected=count[Status.REJECTED],
        failed=count[Status.FAILED],
        ttft_ms=distribution([o.ttft_ms for o in done]),
        tpot_ms=distribution([o.tpot_ms for o in done if o.tpot_ms is not None]),
        hit_rate=sum(o.cached_blocks for o in done) / blocks if blocks else 0.0,
        ideal_hit_rate=ideal,
        goodput=sum(within(o, targets) for o in done) / max(1, len(run.outcomes)),
        busy=run.busy,
        accelerator_seconds=run.accelerator_seconds,
        cost_per_1k_tokens=_cost_per_1k(run.dollars, sum(o.output_tokens for o in done)),
        itl_ms=weighted_distribution(run.gaps),
    )


def _cost_per_1k(dollars: float | None, tokens: int) -> float | None:
    return None if dollars is None or not tokens else 1000 * dollars / tokens


def distribution(values: Sequence[float]) -> Distribution:
    """Mean and percentiles (linear between neighbours)."""
    if not values:
        return Distribution()
    p50, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
    return Distribution(float(np.mean(values)), p50, p90, p99)


def weighted_distribution(values: Sequence[tuple[float, int]]) -> Distribution:
    """Of values that were each met so many times."""
    if not values:
        return Distribution()
    ordered = np.array(sorted(values))
    reached = np.cumsum(ordered[:, 1])
    p50, p90, p99 = (
        float(ordered[np.searchsorted(reached, share * reached[-1]), 0])
        for share in (0.5, 0.9, 0.99)
    )
    return Distribution(float(np.average(ordered[:, 0], weights=ordered[:, 1])), p50, p90, p99)


def trace_report(trace: Trace) -> TraceReport:
    """Sums over the requests replayed, and the losses before."""
    requests = trace.requests
    return TraceReport(
        name=trace.name,
        requests=len(requests),
        input_tokens=sum(r.input_tokens for r in requests),
        output_tokens=sum(r.output_tokens for r in requests),
        span_s=requests[-1].arrival_s - requests[0].arrival_s if requests else 0.0,
        malformed=trace.malformed,
        too_long=trace.too_long,
        outputs_cut=trace.outputs_cut,
        dropped=[f"line {d.line}: {d.reason}" for d in trace.dropped],
    )


def table(report: Report) -> Table:
    """For the terminal: one column a policy."""
    policies = report.policies.values()
    title = f"{report.trace.name}: {report.trace.requests:,} requests"
    grid = Table(title=title, min_width=len(title))
    grid.add_column("", no_wrap=True)
    for name in report.policies:
        grid.add_column(name, justify="right")
    grid.add_row("completed", *(f"{p.completed:,}" for p in policies))
    grid.add_row("rejected", *(f"{p.rejected:,}" for p in policies))
    grid.add_row("failed", *(f"{p.failed:,}" for p in policies), end_section=True)
    _add_latency(grid, "TTFT", [p.ttft_ms for p in policies], ",.0f")
    _add_latency(grid, "TPOT", [p.tpot_ms for p in policies], ",.1f")
    if any(p.itl_ms.p99 is not None for p in policies):
        _add_latency(grid, "ITL", [p.itl_ms for p in policies], ",.1f")
    grid.add_row("block hit rate", *(f"{p.hit_rate:.1%}" for p in policies))
    grid.add_row("  ideal", *(f"{p.ideal_hit_rate:.1%}" for p in policies))
    grid.add_row("goodput", *(f"{p.goodput:.1%}" for p in policies))
    grid.add_row("engines busy", *("-" if p.busy is None else f"{p.busy:.1%}" for p in policies))
    if any(p.cost_per_1k_tokens is not None for p in policies):
        costs = [p.cost_per_1k_tokens for p in policies]
        grid.add_row("$ per 1k tokens", *("-" if c is None else f"{c:.4f}" for c in costs))
    return grid


def _add_latency(grid: Table, name: str, of: Sequence[Distribution], spec: str) -> None:
    for figure in msgspec.structs.fields(Distribution):
        values = [getattr(distribution, figure.name) for distribution in of]
        cells = ["-" if value is None else f"{value:{spec}}" for value in values]
        last = figure.name == "p99"
        grid.add_row(f"{name} ms {figure.name}", *cells, end_section=last)


def within(outcome: Outcome, targets: Targets) -> bool:
    """The request was completed within both targets."""
    if outcome.status is not Status.COMPLETED or outcome.ttft_ms > targets.ttft_ms:
        return False
    return outcome.tpot_ms is None or outcome.tpot_ms <= targets.tpot_ms
