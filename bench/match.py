"""match: who holds how many leading blocks of a prompt, asked from Python.

The index holds a million (worker, block) entries: prompts that every worker holds to one depth,
prompts that they hold to 64 different depths, and for the rest chains of each worker's own. Each
side is asked in its own form (ours: packed names, as they come from the bus; the peer: a list of
hashes) and answers for all workers at once. That both answer the same is checked first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from bench import peer
from bench.machine import one_core
from bench.measure import OURS, PEER, in_turns, p50_us
from bench.options import Options
from bench.ours import OurIndex
from bench.peer import PeerIndex
from bench.rows import Bar, Row, row
from proto.hashing import Words

BARS = (
    Bar("1,024 blocks, * workers, one depth", "ratio", "at most", 0.25),
    Bar("1,024 blocks, * workers, 64 depths", "ratio", "at most", 0.5),
)
WORKERS = (64, 512)
PROMPT_BLOCKS = (16, 128, 1_024)
DEPTHS = 64
ENTRIES = 1_000_000
QUESTIONS = 300
COPIES_OF = 512
"""So many entries of one block: small fleets get several prompts of a kind, large ones one."""


class Index(Protocol):
    """What is filled and compared."""

    def hold(self, worker: int, names: Words) -> None: ...

    def depths(self, names: Words) -> dict[int, int]: ...


def run(options: Options) -> Iterator[Row]:
    """One row a fleet size, prompt length and kind of prompt."""
    for workers in WORKERS:
        yield from _fleet(workers, ENTRIES // 20 if options.quick else ENTRIES, options)


def _fleet(workers: int, entries: int, options: Options) -> Iterator[Row]:
    ours, theirs = OurIndex(workers), PeerIndex() if peer.installed() else None
    indexes: list[Index] = [ours] if theirs is None else [ours, theirs]
    prompts = fill(indexes, workers, entries, np.random.default_rng(0))
    ours.rest()
    for (blocks, kind), of_kind in prompts.items():
        answers = [[index.depths(prompt) for prompt in of_kind] for index in indexes]
        assert all(answer == answers[0] for answer in answers), "the sides disagree"
        asked = [of_kind[i % len(of_kind)] for i in range(30 if options.quick else QUESTIONS)]
        sides = {OURS: partial(p50_us, ours.match, [ours.question(p) for p in asked])}
        if theirs is not None:
            sides[PEER] = partial(p50_us, theirs.match, [theirs.question(p) for p in asked])
        case = f"{blocks:,} blocks, {workers} workers, {kind}"
        figures = in_turns(sides, options.rounds)
        yield row(case, "us", figures[OURS], figures.get(PEER))
        if blocks == max(PROMPT_BLOCKS):
            with one_core():
                figures = in_turns(sides, options.rounds)
            yield row(f"{case}, one core", "us", figures[OURS], figures.get(PEER))


def fill(
    indexes: Sequence[Index], workers: int, entries: int, rng: np.random.Generator
) -> Mapping[tuple[int, str], list[Words]]:
    """Make the workers hold so many entries in all; returns the prompts to ask for, by their
    length and kind."""
    prompts: dict[tuple[int, str], list[Words]] = {}
    held = [0] * workers

    def hold(worker: int, names: Words) -> None:
        held[worker] += len(names)
        for index in indexes:
            index.hold(worker, names)

    for blocks in PROMPT_BLOCKS:
        copies = range(max(1, COPIES_OF // workers))
        alike = [names_at_random(blocks, rng) for _ in copies]
        stairs = [names_at_random(blocks, rng) for _ in copies]
        for worker in range(workers):
            for prompt in alike:
                hold(worker, prompt)
            for prompt in stairs:
                hold(worker, prompt[: depth_of(worker, blocks)])
        prompts[blocks, "one depth"] = alike
        prompts[blocks, f"{min(DEPTHS, blocks)} depths"] = stairs
        prompts[blocks, "miss"] = [names_at_random(blocks, rng) for _ in copies]
    for worker in range(workers):
        if (rest := entries // workers - held[worker]) > 0:
            hold(worker, names_at_random(rest, rng))
    return prompts


def depth_of(worker: int, blocks: int) -> int:
    """How much of a prompt a worker holds where depths differ."""
    depths = min(DEPTHS, blocks)
    return (worker % depths + 1) * blocks // depths


def names_at_random(blocks: int, rng: np.random.Generator) -> Words:
    """Names of blocks that nobody has named before."""
    return rng.integers(1, 1 << 64, size=blocks, dtype=np.uint64)
