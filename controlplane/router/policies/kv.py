"""`kv`: go where the prefix is, unless it is crowded there."""

from __future__ import annotations

from controlplane.router.policies.affinity import head_start_tokens
from controlplane.router.policies.base import (
    Candidates,
    Floats,
    Prompt,
    State,
    decode_tokens,
    prefill_tokens,
)


def kv(prompt: Prompt, candidates: Candidates, state: State) -> Floats:
    """Blocks still to prefill, ours and those queued before us, plus blocks being decoded.

    `prefill_weight * (queued + uncached prompt) + decode`, the form that Dynamo's router
    documents; 0 looks at decode alone. Requirements KR3, KR17. Workers may have blocks of
    different sizes, so all are counted in blocks of the smallest. The worker that has the session
    gets a head start.
    """
    tokens = prefill_tokens(prompt, candidates) - head_start_tokens(prompt, candidates, state)
    weighted = state.knobs.prefill_weight * tokens
    costs: Floats = (weighted + decode_tokens(prompt, candidates)) / candidates.block_tokens.min()
    return costs
