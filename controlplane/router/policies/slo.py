"""`slo`: go where the request costs everybody's latency least, and breaks the fewest promises.

For each candidate, in milliseconds, from the capacity curve of its class (`controlplane.capacity`):

    latency = TTFT                                what is queued, then our uncached prompt
            + pace * output                       our own answer, at the pace of that worker
            + streams * uncached * prefill_token  every stream stands still behind our prompt
            + streams * slower * left             and each of its later steps takes longer

    broken  = streams * (good(pace before) - good(pace after))
            + 1 - good(TTFT) * good(pace after)
            + young * SHORT                       a short answer, that our prompt would stop

    cost    = latency + BROKEN_MS * broken        less a head start where the session is

`good` is the chance that a latency we predict turns out within its target, a logistic step as wide
as predictions are wrong. So a worker that keeps its promises only just is spared, and under
overload one that keeps none any more takes what nobody could serve in time: goodput is lost once
and not everywhere. The latency term keeps that worker from being given everything.

Where a fleet has time to spare, what breaks a promise is none of the averages: it is a long prompt
that stops an answer of a few tokens, which ends before it has made up for that. Nobody knows which
answers will be short, but those are the ones that were begun a moment ago. `young` says that the
worker's last one was, and for how long our prompt would stop it; so equals take turns.

The pace of a worker that spends the share `busy` of its time on prompts is its decode step divided
by `1 - busy`; the rate of prompts is what was booked in the last seconds. Where an engine
speculates, a step brings an answer more than one token, and its pace is better by that much.
"""

from __future__ import annotations

import math

import numpy as np

from controlplane.router.policies.affinity import head_start_tokens
from controlplane.router.policies.base import (
    Candidates,
    Floats,
    Prompt,
    State,
    Weighed,
)
from controlplane.router.policies.kv import kv

BUSY_MAX = 0.9
"""The model has no meaning where prompts come faster than they can be computed."""
WIDTH = 0.15
"""How wrong a prediction is, as a share of its target."""
LATELY_S = 10.0
LEFT = 0.5
"""Of a running answer, on average, when another request comes."""
YOUNG_S = 1.0
"""Short answers are over by then."""
SHORT = 1 / 30
"""Of answers, those which a stop of `YOUNG_S` breaks: fewer than some 25 tokens."""


def slo(prompt: Prompt, candidates: Candidates, state: State) -> Weighed:
    """Milliseconds of latency added to all, and a price for each promise broken."""
    curves = _known(candidates.curves)
    if curves is None:
        return Weighed(kv(prompt, candidates, state))
    knobs = state.knobs
    base_ms, token_ms, request_ms, kv_token_ms = curves
    streams = candidates.requests
    output = prompt.expected_output_tokens
    context = prompt.tokens + output / 2
    uncached = np.maximum(1, prompt.tokens - candidates.cached_tokens)
    ahead = candidates.queued_prefill_tokens + uncached

    per_step = candidates.accept_length
    step_ms = base_ms + request_ms * streams + kv_token_ms * candidates.decode_tokens
    slower_ms = request_ms + kv_token_ms * context
    steps = np.maximum(1.0, ahead / candidates.step_tokens)
    ttft_ms = token_ms * ahead + steps * step_ms

    rate = candidates.prefill_rate
    rates = np.array((rate, rate + uncached / LATELY_S))
    busy = np.minimum(rates * (token_ms / 1000), BUSY_MAX)
    pace_ms, pace_after_ms = np.array((step_ms, step_ms + slower_ms)) / (per_step * (1 - busy))

    own_ms = ttft_ms + pace_after_ms * output
    stop_ms = uncached * token_ms
    harm_ms = streams * (stop_ms + slower_ms * (output * LEFT) / per_step)
    young = np.exp(-candidates.rested_s / YOUNG_S) * np.minimum(stop_ms / (1000 * YOUNG_S), 1.0)
    before, after, in_time = good(
        np.array(
            (
                pace_ms / knobs.slo_tpot_ms,
                pace_after_ms / knobs.slo_tpot_ms,
                ttft_ms / knobs.slo_ttft_ms,
            )
        )
    )
    broken = streams * (before - after) + (1 - in_time * after)
    broken += SHORT * young * np.minimum(streams, 1)
    costs: Floats = own_ms + harm_ms + knobs.slo_broken_ms * broken
    if prompt.home is not None:
        costs -= token_ms * head_start_tokens(prompt, candidates, state)
    told = {"ttft_ms": ttft_ms, "tpot_ms": pace_after_ms, "harm_ms": harm_ms, "broken": broken}
    return Weighed(costs, told)


def _known(curves: Floats) -> Floats | None:
    """Curves without gaps: who is not known yet is taken to be like the others on average. None if
    nobody is known."""
    if not math.isnan(curves[0].sum()):
        return curves
    unknown = np.isnan(curves)
    if unknown.all():
        return None
    mean = np.nanmean(curves, axis=1, keepdims=True)
    return np.where(unknown, mean, curves)


def good(share: Floats) -> Floats:
    """Chance that what is predicted to take this share of its target is within it: a logistic
    function, written as a hyperbolic tangent, which is quick and never overflows."""
    return 0.5 - 0.5 * np.tanh((share - 1) / (2 * WIDTH))
