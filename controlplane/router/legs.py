"""What a policy is shown where two workers share a request: each is judged by its own part (DG8).

Who prefills is not judged by what it decodes; who decodes neither by what it has cached nor by what
it has still to prefill, for that has been, or will be, computed elsewhere. Pure.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np

from controlplane.router.policies.base import Candidates, Prompt
from proto.route import RouteLeg


def for_leg(leg: RouteLeg, prompt: Prompt, candidates: Candidates) -> tuple[Prompt, Candidates]:
    """Prompt and candidates as they matter for that part."""
    if leg is RouteLeg.PREFILL:
        idle = np.zeros_like(candidates.decode_tokens)
        one = msgspec.structs.replace(prompt, expected_output_tokens=1)
        return one, replace(candidates, decode_tokens=idle)
    if leg is RouteLeg.DECODE:
        none = np.zeros_like(candidates.queued_prefill_tokens)
        held = np.full_like(candidates.overlap.cached_tokens, prompt.tokens)
        return prompt, replace(
            candidates,
            queued_prefill_tokens=none,
            overlap=candidates.overlap._replace(cached_tokens=held),
            prefill_rate=np.zeros_like(candidates.prefill_rate),
        )
    return prompt, candidates
