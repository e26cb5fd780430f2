"""Keeping what belongs together on one worker: by hashing alone, or as a hint among other costs."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from controlplane.router.policies.base import Candidates, Floats, Prompt, State
from controlplane.router.policies.load import least_loaded
from proto.ids import WorkerId

BOUND = 1.25
"""How far above the average a worker's load may be before its keys go to the next."""
WORKERS_CACHED = 1 << 13


def consistent_hash(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """The worker that the prompt's key falls to; while that one is crowded, the next one's turn.

    Rendezvous hashing (Thaler and Ravishankar, IEEE/ACM ToN 6(1), 1998): every worker draws a
    number from its name and the key, and the greatest wins, so a worker that comes or goes moves
    its own keys only. With bounded loads (Mirrokni, Thorup and Zadimoghaddam, arXiv 1608.01350):
    nobody gets more than `BOUND` times the average, so that one hot key does not drown a worker.
    Routers agree without a word. A prompt without a key goes to the least loaded.
    """
    if prompt.key is None:
        return least_loaded(prompt, candidates, state)
    names = np.array([_name_key(worker) for worker in candidates.workers], dtype=np.uint64)
    turns: Floats = np.empty(len(candidates))
    turns[np.argsort(_mixed(names ^ np.uint64(prompt.key)))[::-1]] = np.arange(len(candidates))
    most = np.ceil(BOUND * (candidates.requests.sum() + 1) / len(candidates))
    return np.where(candidates.requests < most, turns, turns + len(candidates))


def head_start_tokens(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """Prompt tokens that each candidate is let off when costs are compared (KR4).

    A share of the prompt for the worker that has its session, nothing for the others: enough to
    decide between equals, and outweighed by any real difference in load or cache.
    """
    tokens: Floats = np.zeros(len(candidates))
    if prompt.home is not None and prompt.home in candidates.workers:
        tokens[candidates.workers.index(prompt.home)] = state.knobs.session_affinity * prompt.tokens
    return tokens


@lru_cache(maxsize=WORKERS_CACHED)
def _name_key(worker: WorkerId) -> int:
    return int.from_bytes(blake2b(worker.encode(), digest_size=8).digest(), "little")


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every bit of a word changes half of the result's."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
