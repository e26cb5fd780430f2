"""`lmetric`: the product of what must be computed and who is disturbed by it."""

from __future__ import annotations

import numpy as np

from controlplane.router.policies.base import Candidates, Floats, Prompt, State


def lmetric(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """New prefill tokens x batch size (Zhang et al., arXiv 2603.15202): nothing to tune.

    Neither factor may be zero, or the other would not count: at least one token is computed, even
    of a prompt that is cached, and the batch includes this request.
    """
    del state
    new_tokens = np.maximum(1, prompt.tokens - candidates.cached_tokens)
    costs: Floats = new_tokens * (candidates.requests + 1.0)
    return costs
