"""What a request would do to an engine and to all in it, told from the engine's exact state. Pure.

Times come from the engine's own timing model. Prompts are computed in order of arrival, in full
steps; every sequence gets one token a step. What will arrive later, and slow answers down, is not
known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from controlplane.replay.report import Targets
from workers.sim.engine import Load
from workers.sim.timing import Profile, attention_pairs

Floats = NDArray[np.float64]

EDGE = 0.95
"""Share of a target at which it is an even chance that the target is missed in the end."""
EDGE_WIDTH = 0.05
"""How soft that edge is, as a share of the target."""
SHARE_WEIGHT = 0.04
"""What a whole target's time is worth against a missed one: decides where nobody is at risk."""


@dataclass
class Job:
    """A request in an engine."""

    prompt_tokens: int
    new_tokens: int
    """Of its prompt, neither cached nor queued before it."""
    output_tokens: int
    names: list[int]
    """Of its blocks."""
    first_token_s: float = 0.0
    first_step: int = 0
    """Steps that the engine had made when the first token came."""


@dataclass(frozen=True)
class Sight:
    """One engine at one moment. `queued` are in order of arrival, without first token yet."""

    now_s: float
    profile: Profile
    load: Load
    steps: int
    queued: list[Job]
    streams: list[Job]


def harm(sight: Sight, job: Job, targets: Targets) -> float:
    """What the job would cost all: promises expected to be broken because of it, its own among
    them, plus a little for every target's share of time that it takes."""
    wait_ms, prefill_ms = _until_first_token(sight, job)
    own_step_ms = _step_share_ms(sight.profile, job)
    pace_ms = _pace_ms(sight)
    own = np.array(
        [(wait_ms + prefill_ms) / targets.ttft_ms, (pace_ms + own_step_ms) / targets.tpot_ms]
    )
    before_ms, left, all_tokens = _answers(sight)
    budget_ms = all_tokens * targets.tpot_ms
    ends_ms = before_ms + left * pace_ms
    waiting = np.arange(len(left)) >= len(left) - len(sight.queued)
    stalled = waiting | (left * pace_ms > wait_ms)
    later_ms = stalled * prefill_ms + np.minimum(left, job.output_tokens) * own_step_ms
    risked = _risk((ends_ms + later_ms) / budget_ms) - _risk(ends_ms / budget_ms)
    broken = 1 - np.prod(1 - _risk(own)) + risked.sum()
    return float(broken + SHARE_WEIGHT * (own.sum() + (later_ms / budget_ms).sum()))


def _risk(share: Floats) -> Floats:
    """Chance that who has used that share of a target misses it."""
    exponent = np.clip((share - EDGE) / EDGE_WIDTH, -60, 60)
    risk: Floats = 1 / (1 + np.exp(-exponent))
    return risk


def _until_first_token(sight: Sight, job: Job) -> tuple[float, float]:
    """How long what is queued takes, and how long our own prompt after it, in ms."""
    profile, load, queued = sight.profile, sight.load, sight.queued
    cost = profile.cost
    budget_tokens = max(1, profile.max_num_batched_tokens - load.running)
    decode_ms = cost.step_ms(0, 0, load.running, load.decode_kv_tokens) - cost.decode_base_ms
    token_ms = (cost.prefill_ms(budget_tokens) + decode_ms) / budget_tokens
    # The engine counts all of a waiting prompt, as it has not looked for it in its cache.
    waiting = queued[max(0, len(queued) - load.waiting) :]
    ahead_tokens = load.queued_prefill_tokens - sum(j.prompt_tokens - j.new_tokens for j in waiting)
    ahead_tokens = max(0, ahead_tokens)
    of_all_tokens = sum(j.new_tokens for j in queued)
    pairs = sum(map(_pairs, queued)) * (ahead_tokens / of_all_tokens if of_all_tokens else 0.0)
    return (
        ahead_tokens * token_ms + cost.attention_pair_ms * pairs,
        job.new_tokens * token_ms + cost.attention_pair_ms * _pairs(job),
    )


def _pairs(job: Job) -> float:
    return attention_pairs(job.new_tokens, job.prompt_tokens - job.new_tokens)


def _step_share_ms(profile: Profile, job: Job) -> float:
    """What its sequence adds to a step while it is answered, on average."""
    context_tokens = job.prompt_tokens + job.output_tokens / 2
    cost = profile.cost
    return cost.decode_sequence_ms + cost.decode_kv_token_ms * context_tokens


def _pace_ms(sight: Sight) -> float:
    """What a step without prompts takes once those that are queued are being answered."""
    cost, queued = sight.profile.cost, sight.queued
    kv_tokens = sight.load.decode_kv_tokens + sum(job.prompt_tokens for job in queued)
    sequences = len(sight.streams) + len(queued)
    added_ms = cost.decode_sequence_ms * sequences + cost.decode_kv_token_ms * kv_tokens
    return cost.decode_base_ms + added_ms


def _answers(sight: Sight) -> tuple[Floats, Floats, Floats]:
    """Of every answer that is to go on, streams first: ms since its first token, tokens still to
    come, and all its tokens after the first."""
    rows = [
        (
            (sight.now_s - job.first_token_s) * 1000,
            job.first_step + job.output_tokens - 1 - sight.steps,
            job.output_tokens - 1,
        )
        for job in sight.streams
    ]
    rows = [row for row in rows if row[1] > 0]
    rows += [(0.0, job.output_tokens - 1, job.output_tokens - 1) for job in sight.queued]
    columns = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return columns[0], columns[1], np.maximum(columns[2], 1.0)
