"""What a fleet can carry, so that "80 % load" means the same for every trace, profile and policy.

The fluid limit: requests come evenly to an engine that finds every block cached which any earlier
request of the trace had. An engine that gets `rate` requests a second and makes a step every `step`
seconds has in each step `rate * step` prompts to compute, and one token for each of the
`rate * outputs * step` sequences that are then being written. So a step takes

    step = base + step * rate * work

where `work` is what a request adds to the steps it is part of: its uncached tokens and their
attention, and for each token of its answer a sequence and its context. 100 % is the rate at which
that step takes as long as the TPOT target: nobody, however well they place requests, can keep
more than that rate within the target for long.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.replay.trace import TraceRequest
from proto.hashing import Words
from workers.sim.timing import Profile, attention_pairs


def fleet_rate(
    requests: Sequence[TraceRequest],
    cached_tokens: Sequence[int],
    profiles: Sequence[Profile],
    tpot_target_ms: float,
) -> float:
    """Requests a second that are 100 % load for engines of these profiles together."""
    return sum(
        profiles.count(profile) * engine_rate(requests, cached_tokens, profile, tpot_target_ms)
        for profile in dict.fromkeys(profiles)
    )


def engine_rate(
    requests: Sequence[TraceRequest],
    cached_tokens: Sequence[int],
    profile: Profile,
    tpot_target_ms: float,
) -> float:
    """Requests a second that are 100 % load for one engine. ValueError if not even an idle one
    keeps the target."""
    base_ms = profile.cost.decode_base_ms
    if base_ms >= tpot_target_ms:
        raise ValueError(
            f"a step of {profile.name} takes {base_ms:g} ms: over the TPOT target of"
            f" {tpot_target_ms:g} ms, so that it has no capacity"
        )
    work_ms = sum(map(_work_ms, [profile] * len(requests), requests, cached_tokens))
    share = 1 - base_ms / tpot_target_ms
    return 1000 * share * len(requests) / work_ms


def ideal_cached_tokens(names: Sequence[Words], block_tokens: int) -> list[int]:
    """Leading tokens of each prompt that earlier ones of the trace had, too."""
    seen: set[int] = set()
    cached = []
    for prompt in names:
        fresh = [name for name in prompt.tolist() if name not in seen]
        # Names are chained: what is fresh is the end of the prompt.
        cached.append((len(prompt) - len(fresh)) * block_tokens)
        seen.update(fresh)
    return cached


def _work_ms(profile: Profile, request: TraceRequest, cached_tokens: int) -> float:
    cost = profile.cost
    cached_tokens = min(cached_tokens, request.input_tokens - 1)
    new_tokens = request.input_tokens - cached_tokens
    after_first = request.output_tokens - 1
    context_tokens = request.input_tokens + after_first / 2
    return (
        cost.prefill_token_ms * new_tokens
        + cost.attention_pair_ms * attention_pairs(new_tokens, cached_tokens)
        + after_first * (cost.decode_sequence_ms + cost.decode_kv_token_ms * context_tokens)
    )
