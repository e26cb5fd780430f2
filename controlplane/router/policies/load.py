"""Policies that look at how busy a worker is, and not at what it holds."""

from __future__ import annotations

import numpy as np

from controlplane.router.policies.base import Candidates, Floats, Prompt, State


def least_loaded(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """Requests in flight."""
    del prompt, state
    return candidates.requests.astype(np.float64)


def power_of_two(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """The less loaded of two drawn by chance."""
    del prompt
    drawn = state.rng.sample(range(len(candidates)), min(2, len(candidates)))
    costs = np.full(len(candidates), np.inf)
    costs[drawn] = candidates.requests[drawn]
    return costs
