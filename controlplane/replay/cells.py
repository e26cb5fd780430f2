"""The cells of the ladder: a trace at a load. Each becomes the scenario that every arm is run on.

Generated traces are made for a fleet of eight H100 engines: their base rates are near its capacity,
so that thinking times and bursts are hardly stretched when a trace is brought to its load.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import msgspec

from controlplane.replay.capacity import fleet_rate, ideal_cached_tokens
from controlplane.replay.fleet import MODEL
from controlplane.replay.generate import Workload, generate
from controlplane.replay.names import PromptNamer
from controlplane.replay.report import Targets, ideal_hit_rate
from controlplane.replay.simulate import Scenario
from controlplane.replay.trace import TraceRequest, load_trace
from proto.hashing import BlockHasher, Scope, Words
from workers.sim.timing import A100, H100, Profile

RECORDED = "recorded"
UNEQUAL = "unequal hardware"
LOADS = (0.5, 0.8, 0.95, 1.2)
CONTEXT_TOKENS = 131_072
BLOCK_TOKENS = 64

CHAT = Workload(rate=3.0, turns=4.0, system_prompts=20, system_blocks_max=8, message_tokens=1_500.0)
WORKLOADS = {
    "no reuse": Workload(
        rate=9.0, turns=1.0, system_prompts=0, message_tokens=5_000.0, output_tokens=200.0
    ),
    "shared prefix": Workload(
        rate=9.0,
        turns=1.0,
        system_prompts=24,
        system_blocks_min=8,
        system_blocks_max=24,
        message_tokens=1_500.0,
        output_tokens=200.0,
    ),
    "sibling bursts": Workload(
        rate=0.8,
        turns=1.0,
        siblings=16,
        system_blocks_min=12,
        system_blocks_max=20,
        message_tokens=600.0,
        output_tokens=150.0,
    ),
    "1:32 lengths": Workload(
        rate=18.0,
        turns=1.0,
        system_prompts=0,
        message_tokens=600.0,
        long_share=0.12,
        output_tokens=150.0,
        sigma=0.3,
    ),
    UNEQUAL: CHAT,
}
"""Nothing shared; long prefixes that everybody shares; 16 at once with a fresh long prefix; one
prompt in eight 32 times as long; and ordinary conversations on a fleet of which half is slower."""


@dataclass(frozen=True)
class Cell:
    """One trace at one load; 1.0 is what the fleet can carry (see `capacity`)."""

    trace: str
    load: float


@dataclass(frozen=True)
class Course:
    """What is the same for all cells."""

    requests: int
    workers: int
    targets: Targets
    recorded: Path | None = None
    event_delay_s: float = 0.005
    seed: int = 0

    @property
    def traces(self) -> tuple[str, ...]:
        return (*([RECORDED] if self.recorded else []), *WORKLOADS)

    def chosen(self, names: Sequence[str]) -> Sequence[str]:
        """The traces of these names, all if there are none. ValueError for one there is not."""
        for name in names:
            if name not in self.traces:
                raise ValueError(f"there is no trace {name!r}; there are: {', '.join(self.traces)}")
        return names or self.traces


def scenario_of(course: Course, cell: Cell) -> Scenario:
    """The trace of a cell, brought to its load. Raises `TraceUnreadable`."""
    requests, names, rate = _material(course, cell.trace)
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    stretch = span_s * rate * cell.load / len(requests)
    return Scenario(
        requests=[msgspec.structs.replace(r, arrival_s=r.arrival_s / stretch) for r in requests],
        names=names,
        profiles=_profiles(course, cell.trace),
        block_tokens=BLOCK_TOKENS,
        targets=course.targets,
        event_delay_s=course.event_delay_s,
        seed=course.seed,
    )


def ideal_of(course: Course, trace: str) -> float:
    """The hit rate of one cache without bounds that all workers share."""
    return ideal_hit_rate(_material(course, trace)[1])


@lru_cache(maxsize=2)
def _material(course: Course, trace: str) -> tuple[list[TraceRequest], list[Words], float]:
    """Requests, their names, and how many a second are 100 % load. Kept: every load and arm of a
    trace is made of it."""
    requests = _requests(course, trace)
    names = list(PromptNamer(BlockHasher(b"replay", Scope(MODEL), BLOCK_TOKENS)).names(requests))
    cached_tokens = ideal_cached_tokens(names, BLOCK_TOKENS)
    profiles = _profiles(course, trace)
    return requests, names, fleet_rate(requests, cached_tokens, profiles, course.targets.tpot_ms)


def _requests(course: Course, trace: str) -> list[TraceRequest]:
    if trace == RECORDED:
        assert course.recorded is not None
        limit = course.requests
        return load_trace(course.recorded, limit=limit, context_tokens=CONTEXT_TOKENS).requests
    # Twice as many conversations as requests: a few are too long for their context and say nothing.
    workload = replace(WORKLOADS[trace], conversations=2 * course.requests)
    return list(islice(generate(workload, random.Random(course.seed)), course.requests))


def _profiles(course: Course, trace: str) -> tuple[Profile, ...]:
    slower = course.workers // 2 if trace == UNEQUAL else 0
    return (H100,) * (course.workers - slower) + (A100,) * slower
