"""`slo`: go where the request costs everybody's latency least, and breaks the fewest promises.

For each candidate, in milliseconds, from the capacity curve of its class (`controlplane.capacity`):

    latency = TTFT                                what is queued, then our uncached prompt
            + pace * output                       our own answer, at the pace of that worker
            + streams * uncached * prefill_token  every stream stands still behind our prompt
            + streams * slower * left             and each of its later steps takes longer

    broken  = streams * (good(pace before) - good(pace after))
            + 1 - good(TTFT) * good(pace after)

    cost    = latency + BROKEN_MS * broken        less a head start where the session is

`good` is the chance that a latency we predict turns out within its target, a logistic step as wide
as predictions are wrong. So a worker that keeps its promises only just is spared, and under
overload one that keeps none any more takes what nobody could serve in time: goodput is lost once
and not everywhere. The latency term keeps that worker from being given everything.

The pace of a worker that spends the share `busy` of its time on prompts is its decode step divided
by `1 - busy`; the rate of prompts is what was booked in the last seconds. Where an engine
speculates, a step brings an answer more than one token, and its pace is better by that much.
"""

from __future__ import annotations

import numpy as np

from controlplane.router.policies.affinity import head_start_tokens
from controlplane.router.policies.base import (
    Candidates,
    Floats,
    Prompt,
    State,
    Weighed,
    prefill_tokens,
)
from controlplane.router.policies.kv import kv

BUSY_MAX = 0.9
"""The model has no meaning where prompts come faster than they can be computed."""
WIDTH = 0.1
"""How wrong a prediction is, as a share of its target."""
LATELY_S = 10.0
LEFT = 0.5
"""Of a running answer, on average, when another request comes."""


def slo(prompt: Prompt, candidates: Candidates, state: State) -> Weighed:
    """Milliseconds of latency added to all, and a price for each promise broken."""
    if np.isnan(candidates.curves).all():
        return Weighed(kv(prompt, candidates, state))
    knobs = state.knobs
    base_ms, token_ms, request_ms, kv_token_ms = _known(candidates.curves)
    streams = candidates.requests
    output = prompt.expected_output_tokens
    context = prompt.tokens + output / 2
    uncached = np.maximum(1, prompt.tokens - candidates.cached_tokens)
    ahead = prefill_tokens(prompt, candidates)

    per_step = candidates.accept_length
    step_ms = base_ms + request_ms * streams + kv_token_ms * candidates.decode_tokens
    slower_ms = request_ms + kv_token_ms * context
    steps = np.maximum(1.0, ahead / candidates.step_tokens)
    ttft_ms = token_ms * ahead + steps * step_ms

    rate = candidates.prefill_rate
    more = uncached / LATELY_S
    pace_ms = step_ms / per_step / (1 - _busy(rate * token_ms))
    pace_after_ms = (step_ms + slower_ms) / per_step / (1 - _busy((rate + more) * token_ms))

    own_ms = ttft_ms + pace_after_ms * output
    harm_ms = streams * (uncached * token_ms + slower_ms / per_step * output * LEFT)
    kept = good(pace_after_ms, knobs.slo_tpot_ms)
    broken = streams * (good(pace_ms, knobs.slo_tpot_ms) - kept)
    broken += 1 - good(ttft_ms, knobs.slo_ttft_ms) * kept
    head_start_ms = token_ms * head_start_tokens(prompt, candidates, state)
    costs: Floats = own_ms - head_start_ms + harm_ms + knobs.slo_broken_ms * broken
    told = {"ttft_ms": ttft_ms, "tpot_ms": pace_after_ms, "harm_ms": harm_ms, "broken": broken}
    return Weighed(costs, told)


def _known(curves: Floats) -> Floats:
    """Curves without gaps: who is not known yet is taken to be like the others on average."""
    unknown = np.isnan(curves)
    if not unknown.any():
        return curves
    mean = np.nanmean(curves, axis=1, keepdims=True)
    return np.where(unknown, mean, curves)


def good(latency_ms: Floats, target_ms: float) -> Floats:
    """Chance that what is predicted to take so long is within its target."""
    over = np.clip((latency_ms - target_ms) / (WIDTH * target_ms), -30, 30)
    return 1 / (1 + np.exp(over))


def _busy(share_ms: Floats) -> Floats:
    """Share of time spent on prompts; milliseconds a second."""
    return np.minimum(share_ms / 1000, BUSY_MAX)
