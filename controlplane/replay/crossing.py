"""Where speculative decoding stops helping: one engine, the same requests, faster and faster.

A short trace without shared prefixes is brought to rising shares of what the engine can carry, so
that its batches grow, and replayed without drafts and with them, at several rates of acceptance.
Who asks, and how much of each answer's drafts is kept, is the same in every run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise

import msgspec

from controlplane.replay.arms import arm
from controlplane.replay.capacity import fleet_rate
from controlplane.replay.fleet import MODEL
from controlplane.replay.generate import Workload, generate
from controlplane.replay.names import PromptNamer
from controlplane.replay.parallel import run_all
from controlplane.replay.report import PolicyReport, Targets, policy_report
from controlplane.replay.simulate import Scenario, simulate
from proto.hashing import BlockHasher, Scope
from proto.speculation import expected_speedup
from workers.sim.speculation import Speculation
from workers.sim.timing import Profile

BLOCK_TOKENS = 64
WORKLOAD = Workload(turns=1.0, system_prompts=0, message_tokens=400.0, output_tokens=250.0)


@dataclass(frozen=True)
class Sweep:
    """What is replayed."""

    profile: Profile
    acceptances: tuple[float, ...]
    loads: tuple[float, ...]
    drafts: int
    draft_cost: float
    requests: int
    targets: Targets
    seed: int = 0


class Point(msgspec.Struct, frozen=True):
    """One run. Without drafts `acceptance` is None."""

    load: float
    acceptance: float | None
    batch: float
    """Sequences in a step, on average over steps that decode."""
    accept_length: float
    results: PolicyReport


class Line(msgspec.Struct, frozen=True):
    """One rate of acceptance over all loads, beside the runs without drafts."""

    acceptance: float
    expected: float
    """Speed-up by the formula (SD6), which knows no batch."""
    batches: list[float]
    """Of the runs without drafts."""
    speedups: list[float]
    """Mean time per output token without drafts by that with them."""
    ttft_ratios: list[float]
    """Mean time to first token with drafts by that without."""
    crossing: float | None
    """The batch from which on drafts hurt; None: not within these loads."""


def sweep(of: Sweep, on_progress: Callable[[int, int], None]) -> list[Point]:
    """Every load without drafts and with each acceptance."""
    runs = [(load, a) for load in of.loads for a in (None, *of.acceptances)]
    return run_all([partial(_point, of, *run) for run in runs], on_progress)


def lines(of: Sweep, points: Sequence[Point]) -> list[Line]:
    """What the points say, one line for each acceptance."""
    plain = [p for p in points if p.acceptance is None]
    return [
        _line(of, acceptance, plain, [p for p in points if p.acceptance == acceptance])
        for acceptance in of.acceptances
    ]


def crossing(batches: Sequence[float], speedups: Sequence[float]) -> float | None:
    """Where the speed-up first falls below 1, between two measured batches; None: nowhere. The
    first batch, if it is below 1 from the start."""
    points = list(zip(batches, speedups, strict=True))
    if points and points[0][1] < 1:
        return points[0][0]
    for (batch, speedup), (next_batch, next_speedup) in pairwise(points):
        if next_speedup < 1:
            return batch + (next_batch - batch) * (speedup - 1) / (speedup - next_speedup)
    return None


def _line(of: Sweep, acceptance: float, plain: Sequence[Point], drafting: Sequence[Point]) -> Line:
    def ratios(figure: Callable[[PolicyReport], float | None]) -> list[float]:
        pairs = [
            (figure(p.results), figure(d.results)) for p, d in zip(plain, drafting, strict=True)
        ]
        return [without / with_ for without, with_ in pairs if without and with_]

    batches = [point.batch for point in plain]
    speedups = ratios(lambda results: results.tpot_ms.mean)
    return Line(
        acceptance=acceptance,
        expected=expected_speedup(acceptance, of.drafts, of.draft_cost),
        batches=batches,
        speedups=speedups,
        ttft_ratios=[1 / ratio for ratio in ratios(lambda results: results.ttft_ms.mean)],
        crossing=crossing(batches, speedups),
    )


def _point(
    of: Sweep, load: float, acceptance: float | None, on_outcome: Callable[[], None]
) -> Point:
    scenario = _scenario(of, load)
    if acceptance is not None:
        speculation = Speculation(of.drafts, acceptance, draft_cost=of.draft_cost)
        scenario = replace(scenario, speculation=speculation)
    run = simulate(scenario, arm("round_robin", of.targets), on_outcome)
    return Point(
        load, acceptance, run.batch, run.accept_length, policy_report(run, 0.0, of.targets)
    )


def _scenario(of: Sweep, load: float) -> Scenario:
    workload = replace(WORKLOAD, conversations=2 * of.requests)
    requests = list(islice(generate(workload, random.Random(of.seed)), of.requests))
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    rate = fleet_rate(requests, [0] * len(requests), [of.profile], of.targets.tpot_ms)
    stretch = span_s * rate * load / len(requests)
    requests = [msgspec.structs.replace(r, arrival_s=r.arrival_s / stretch) for r in requests]
    namer = PromptNamer(BlockHasher(b"replay", Scope(MODEL), BLOCK_TOKENS))
    return Scenario(requests, list(namer.names(requests)), (of.profile,), BLOCK_TOKENS, of.targets)
