"""What every policy is given and gives back, and who is chosen from that.

A policy is a small function from plain data to one cost a candidate; the lowest wins. Ties go to
the candidate with the fewest requests in flight, then to chance, never to the lowest id, so that
an idle fleet is not served by its first worker alone.

Candidates are columns, one row a worker: five hundred workers are weighed in the time that a loop
over a few dozen would take.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from proto.ids import WorkerId

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Number = TypeVar("Number", int, Ints)


class Overlap(NamedTuple):
    """What workers hold of a prompt, by row, in tokens of its leading blocks."""

    cached_tokens: Ints
    """Held, or thought to be, each tier with its credit: computing is saved for so many."""
    held_tokens: Ints
    """Held in any tier, or thought to be held."""
    host_tokens: Ints
    """Of what is held, in host memory and not in the GPU."""
    disk_tokens: Ints
    """Of what is held, only on disk."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Workers that could take the prompt, as the router sees them at this moment.

    Row i of every column is worker i; there is at least one. Columns are views: a policy must not
    write to them.
    """

    workers: Sequence[WorkerId]
    block_tokens: Ints
    overlap: Overlap
    queued_prefill_tokens: Ints
    """Prompt tokens that it has still to compute for others."""
    decode_tokens: Ints
    """Tokens of the blocks that its sequences hold, or will."""
    requests: Ints
    """In flight, queued ones included."""
    capacity_tokens: Ints
    """Tokens that its KV cache holds; 0 if it does not say."""
    step_tokens: Ints
    """Prompt tokens that it computes in one step, at most."""
    prefill_rate: Floats
    """Prompt tokens a second that it was given to compute, of late."""
    curves: Floats
    """How fast it is: shape (4, rows), the fields of `controlplane.capacity.Curve`; not a
    number where that is not known yet."""
    accept_length: Floats | float = 1.0
    """Tokens that a step brings each running answer, on average; more than 1 where the engine
    speculates (SD9)."""
    rested_s: Floats | float = math.inf
    """How long ago it was last given a prompt."""

    def __len__(self) -> int:
        return len(self.workers)

    @property
    def cached_tokens(self) -> Ints:
        """Leading tokens of the prompt that the worker need not compute, as it holds their KV
        blocks. Those in slower tiers, which have to be fetched, count by their credit."""
        return self.overlap.cached_tokens


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What is to be placed."""

    tokens: int
    expected_output_tokens: int
    key: int | None = None
    """64 bits, equal for prompts that belong together: by their session, else by how they begin.
    None where nothing is known of either."""
    home: WorkerId | None = None
    """The worker that served its session last, which need not be a candidate."""


class Knobs(msgspec.Struct, frozen=True):
    """What an operator may turn; `controlplane.router.settings` says what each does."""

    prefill_weight: float
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_broken_ms: float
    session_affinity: float


class State:
    """What a policy may remember from one decision to the next, its dice and its knobs."""

    def __init__(self, rng: random.Random, knobs: Knobs) -> None:
        self.rng = rng
        self.knobs = knobs
        self.last_turn: WorkerId | None = None


class Weighed(NamedTuple):
    """What a policy found."""

    costs: Floats
    """One a row; infinite: not this one, though at least one is finite."""
    values: Mapping[str, Floats] = {}
    """What the costs are made of, by name and row, to explain them."""


Policy = Callable[[Prompt, Candidates, State], Weighed | Floats]
"""Weighs the candidates; costs alone will do where there is nothing more to explain."""


def prefill_tokens(prompt: Prompt, candidates: Candidates) -> Ints:
    """Tokens each worker computes until our first one: what is queued, and our uncached part."""
    return candidates.queued_prefill_tokens + np.maximum(
        0, prompt.tokens - candidates.cached_tokens
    )


def decode_tokens(prompt: Prompt, candidates: Candidates) -> Ints:
    """Tokens of whole blocks that each worker's sequences hold once it has ours, too."""
    own_blocks = decode_blocks(prompt, candidates.block_tokens)
    return candidates.decode_tokens + own_blocks * candidates.block_tokens


def decode_blocks(prompt: Prompt, block_tokens: Number) -> Number:
    """Blocks the sequence will hold when its answer is half written, the average over its life."""
    tokens = prompt.tokens + prompt.expected_output_tokens // 2
    return -(-tokens // block_tokens)


def pick(candidates: Candidates, costs: Floats, rng: random.Random, temperature: float) -> int:
    """Row of the chosen candidate.

    Temperature 0 takes the lowest cost. Above it the choice is drawn with probability
    `exp(-(cost - least) / ((most - least) * temperature))`, normalised, which spreads requests
    that are decided in the same moment (KR17).
    """
    assert len(candidates) == len(costs) > 0
    best = int(costs.argmin())
    least = costs[best]
    if temperature > 0:
        most = costs[np.isfinite(costs)].max()
        if most > least:
            weights = np.exp(-(costs - least) / ((most - least) * temperature))
            return rng.choices(range(len(costs)), weights.tolist())[0]
    tied = np.flatnonzero(costs == least)
    if len(tied) == 1:
        return best
    requests = candidates.requests[tied]
    return int(rng.choice(tied[requests == requests.min()].tolist()))
