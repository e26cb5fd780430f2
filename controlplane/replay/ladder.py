"""The ladder: every arm on every cell, and what that says of one of them, the subject.

The rungs go from knowing nothing to knowing everything. After them comes the subject with KV events
that come late or get lost. `kv best` is no arm of its own: for each cell it is whichever of the
four weights did best in that very cell, which nobody could know beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from controlplane.replay.arms import Arm, arm
from controlplane.replay.cells import Cell, Course, ideal_of, scenario_of
from controlplane.replay.parallel import run_all
from controlplane.replay.report import PolicyReport, policy_report
from controlplane.replay.simulate import simulate

SUBJECT = "slo"
BLIND = "round_robin"
ORACLE = "oracle"
KV_BEST = "kv best"
KV_WEIGHTS = tuple(f"kv:prefill_weight={weight}" for weight in (1, 2, 4, 8))
LATE_OR_LOST = ("kv_delay_s=0.1", "kv_delay_s=1", "kv_delay_s=10", "kv_loss=0.01", "kv_loss=0.1")
RUNGS = (
    "random",
    BLIND,
    "least_loaded",
    "power_of_two",
    "consistent_hash",
    "approximate",
    *KV_WEIGHTS,
    "lmetric",
    SUBJECT,
    ORACLE,
    *(f"{SUBJECT}:{how}" for how in LATE_OR_LOST),
)
DEGRADED_LOADS = (0.8, 0.95)
MARGIN = 0.03
"""How much less than the best arm still counts as good."""


class Score(msgspec.Struct, frozen=True):
    """What one arm made of one cell."""

    trace: str
    load: float
    arm: str
    figures: PolicyReport


class Verdict(msgspec.Struct, frozen=True):
    """The subject in one cell, against the others that any router could be (no oracle, and none
    that hears late)."""

    trace: str
    load: float
    subject: float
    """Its goodput; so are the next."""
    best: float
    best_arm: str
    blind: float

    @property
    def near_best(self) -> bool:
        return self.subject >= (1 - MARGIN) * self.best

    @property
    def above_blind(self) -> bool:
        return self.subject >= self.blind


def plan(
    traces: Sequence[str], loads: Sequence[float], arms: Sequence[str]
) -> list[tuple[Cell, str]]:
    """All runs: every arm on every cell, the degraded ones at some loads only. Runs of one trace
    follow each other."""
    return [
        (Cell(trace, load), name)
        for trace in traces
        for load in loads
        for name in arms
        if load in DEGRADED_LOADS or not degraded(name)
    ]


def degraded(name: str) -> bool:
    """Whether the arm hears late, or not everything."""
    return any(option.startswith(("kv_delay_s=", "kv_loss=")) for option in name.split(":"))


def climb(
    course: Course, runs: Sequence[tuple[Cell, str]], on_progress: Callable[[int], None]
) -> list[Score]:
    """Make all runs; calls `on_progress` with how many requests have ended in all of them."""
    ended_of = [0] * len(runs)

    def on_run_progress(number: int, ended: int) -> None:
        ended_of[number] = ended
        on_progress(sum(ended_of))

    jobs = [partial(_run, course, cell, arm(name, course.targets)) for cell, name in runs]
    return run_all(jobs, on_run_progress)


def with_best(scores: Sequence[Score]) -> list[Score]:
    """The scores, and `kv best` after the last of the weights in each cell that has all."""
    result = []
    for score in scores:
        result.append(score)
        of_cell = by_arm(scores, score.trace, score.load)
        if score.arm == KV_WEIGHTS[-1] and of_cell.keys() >= set(KV_WEIGHTS):
            best = max((of_cell[name] for name in KV_WEIGHTS), key=lambda f: f.goodput)
            result.append(Score(score.trace, score.load, KV_BEST, best))
    return result


def by_arm(scores: Sequence[Score], trace: str, load: float) -> Mapping[str, PolicyReport]:
    """The figures of one cell."""
    return {s.arm: s.figures for s in scores if (s.trace, s.load) == (trace, load)}


def verdicts(scores: Sequence[Score]) -> list[Verdict]:
    """One for each cell that has the subject, round robin and somebody else."""
    found = []
    for trace, load in dict.fromkeys((s.trace, s.load) for s in scores):
        goodput = {name: f.goodput for name, f in by_arm(scores, trace, load).items()}
        if SUBJECT in goodput and BLIND in goodput:
            rivals = [name for name in goodput if name in _RIVALS]
            best = max(rivals, key=goodput.__getitem__)
            found.append(
                Verdict(trace, load, goodput[SUBJECT], goodput[best], best, goodput[BLIND])
            )
    return found


_RIVALS = {name for name in RUNGS if name.partition(":")[0] not in (SUBJECT, ORACLE)}


def _run(course: Course, cell: Cell, of: Arm, on_outcome: Callable[[], None]) -> Score:
    run = simulate(scenario_of(course, cell), of, on_outcome)
    figures = policy_report(run, ideal_of(course, cell.trace), course.targets)
    return Score(cell.trace, cell.load, of.name, figures)
