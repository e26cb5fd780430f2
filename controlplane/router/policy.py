"""Policies: given the candidates for a prompt, what each would cost, and who is chosen.

A policy is a small function from plain data to one cost a candidate; the lowest wins. Ties go to
the candidate with the fewest requests in flight, then to chance, never to the lowest id, so that
an idle fleet is not served by its first worker alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import msgspec

from proto.ids import WorkerId


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """One worker that could take the prompt, as the router sees it at this moment."""

    worker: WorkerId
    block_tokens: int
    overlap_blocks: int
    """Leading blocks of the prompt that the worker holds."""
    queued_prefill_tokens: int
    """Prompt tokens that it has still to compute for others."""
    decode_blocks: int
    """Blocks that its running sequences hold, or will."""
    requests: int
    """In flight, queued ones included."""


class Prompt(msgspec.Struct, frozen=True, gc=False):
    """What is to be placed."""

    tokens: int
    expected_output_tokens: int


class State:
    """What a policy may remember from one decision to the next, its dice and its one knob."""

    def __init__(self, rng: random.Random, prefill_weight: float) -> None:
        self.rng = rng
        self.prefill_weight = prefill_weight
        self.last_turn: WorkerId | None = None


Policy = Callable[[Prompt, Sequence[Candidate], State], list[float]]
"""One cost a candidate, in order; there is at least one candidate."""


def kv(prompt: Prompt, candidates: Sequence[Candidate], state: State) -> list[float]:
    """Blocks still to prefill, ours and those queued before us, plus blocks being decoded.

    `prefill_weight * (queued + uncached prompt) + decode`, the form that Dynamo's router
    documents; 0 looks at decode alone. Requirements KR3, KR17. Workers may have blocks of different
    sizes, so all are counted in blocks of the smallest.
    """
    unit_tokens = min(c.block_tokens for c in candidates)
    return [
        (state.prefill_weight * prefill_tokens(prompt, c) + decode_tokens(prompt, c)) / unit_tokens
        for c in candidates
    ]


def least_loaded(prompt: Prompt, candidates: Sequence[Candidate], state: State) -> list[float]:
    """Requests in flight."""
    del prompt, state
    return [float(c.requests) for c in candidates]


def round_robin(prompt: Prompt, candidates: Sequence[Candidate], state: State) -> list[float]:
    """The next by name after the one before, whatever it is doing."""
    del prompt
    after = [c.worker for c in candidates if state.last_turn and c.worker > state.last_turn]
    turn = min(after) if after else min(c.worker for c in candidates)
    state.last_turn = turn
    return [0.0 if c.worker == turn else math.inf for c in candidates]


def random_choice(prompt: Prompt, candidates: Sequence[Candidate], state: State) -> list[float]:
    """Any, with equal chance."""
    del prompt
    return [state.rng.random() for _ in candidates]


def power_of_two(prompt: Prompt, candidates: Sequence[Candidate], state: State) -> list[float]:
    """The less loaded of two drawn by chance."""
    del prompt
    drawn = set(state.rng.sample(range(len(candidates)), min(2, len(candidates))))
    return [float(c.requests) if i in drawn else math.inf for i, c in enumerate(candidates)]


POLICIES: dict[str, Policy] = {
    "kv": kv,
    "least_loaded": least_loaded,
    "power_of_two": power_of_two,
    "random": random_choice,
    "round_robin": round_robin,
}


def policy(name: str) -> Policy:
    """The policy of that name; ValueError lists those there are."""
    try:
        return POLICIES[name]
    except KeyError:
        raise ValueError(
            f"there is no policy {name!r}; there are: {', '.join(sorted(POLICIES))}"
        ) from None


def prefill_tokens(prompt: Prompt, candidate: Candidate) -> int:
    """Tokens the worker computes until our first one: what is queued, and our uncached part."""
    uncached = prompt.tokens - candidate.overlap_blocks * candidate.block_tokens
    return candidate.queued_prefill_tokens + max(0, uncached)


def decode_tokens(prompt: Prompt, candidate: Candidate) -> int:
    """Tokens of whole blocks that the worker's sequences hold once it has ours, too."""
    blocks = candidate.decode_blocks + decode_blocks(prompt, candidate.block_tokens)
    return blocks * candidate.block_tokens


def decode_blocks(prompt: Prompt, block_tokens: int) -> int:
    """Blocks the sequence will hold when its answer is half written, the average over its life."""
    return math.ceil((prompt.tokens + prompt.expected_output_tokens / 2) / block_tokens)


def pick(
    candidates: Sequence[Candidate], costs: Sequence[float], rng: random.Random, temperature: float
) -> int:
    """Index of the chosen candidate.

    Temperature 0 takes the lowest cost. Above it the choice is drawn with probability
    `exp(-(cost - least) / ((most - least) * temperature))`, normalised, which spreads requests
    that are decided in the same moment (KR17).
    """
    assert len(candidates) == len(costs) > 0
    least, most = min(costs), max(c for c in costs if c < math.inf)
    if temperature > 0 and most > least:
        scale = (most - least) * temperature
        weights = [math.exp(-(cost - least) / scale) for cost in costs]
        return rng.choices(range(len(costs)), weights)[0]
    tied = [i for i, cost in enumerate(costs) if cost == least]
    if len(tied) == 1:
        return tied[0]
    fewest = min(candidates[i].requests for i in tied)
    return rng.choice([i for i in tied if candidates[i].requests == fewest])
