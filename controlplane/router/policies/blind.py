"""Policies that look at nothing: what a plain load balancer does, to compare with."""

from __future__ import annotations

import numpy as np

from controlplane.router.policies.base import Candidates, Floats, Prompt, State


def round_robin(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """The next by name after the one before, whatever it is doing."""
    del prompt
    workers, last = candidates.workers, state.last_turn
    after = [worker for worker in workers if worker > last] if last is not None else []
    state.last_turn = turn = min(after or workers)
    costs = np.full(len(workers), np.inf)
    costs[workers.index(turn)] = 0.0
    return costs


def random_choice(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """Any, with equal chance."""
    del prompt
    return np.array([state.rng.random() for _ in candidates.workers])
