"""What an engine's steps cost, from counters that do not say so: `StepSums` by differences.

vLLM counts its steps, the tokens it makes and the gaps between a stream's tokens, but not how long
a step takes. Over a window in which an engine decodes, a gap is a step: every running stream gets
one token in each. So

    prefill_tokens   = prompt tokens - those found in cache
    decode_batch     = tokens generated less drafts accepted, the sum of the steps' batches
    decode_kv_tokens = steps * KV tokens in use, the mean of both ends of the window
    busy_ms          = steps * mean gap, and never more than the window

Errors: a prompt counts when its first token comes, up to a few steps late, which is why windows
are seconds long; steps with larger batches weigh more in the mean gap; windows in which nothing was
decoded tell no gap and are left out. All of the time is given as `decode_ms`, as it cannot be
divided; who learns from it adds both parts anyway. Of an engine that tells no steps (SGLang), only
what its drafts came to is told. How long prompts took vLLM tells beside it, for engines that only
prefill, too: `prompt_ms`.
"""

from __future__ import annotations

from msgspec import structs

from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineWork
from proto.load import StepSums

WINDOW_S = 2.0
NOTHING = StepSums()


class StepMeter:
    """Turns one engine's counters into sums over windows. Pure."""

    def __init__(self) -> None:
        self._load: EngineLoad | None = None
        self._since_s = 0.0

    def take(self, load: EngineLoad, now_s: float) -> StepSums:
        """The sums since the last window's end, if another is full; else nothing."""
        before = self._load
        if before is None or load.is_later_life(before):
            self._load, self._since_s = load, now_s
            return NOTHING
        if now_s - self._since_s < WINDOW_S:
            return NOTHING
        window_ms = (now_s - self._since_s) * 1000
        self._load, self._since_s = load, now_s
        if load.work is None or before.work is None:
            return NOTHING
        kv_tokens = (load.decode_kv_tokens + before.decode_kv_tokens) / 2
        return _sums(load.work.since(before.work), kv_tokens, window_ms)


def _sums(did: EngineWork, kv_tokens: float, window_ms: float) -> StepSums:
    prompt_ms = max(0.0, did.prompts_s) * 1000
    drafts = did.drafts or EngineDrafts(0, 0, 0)
    told = StepSums(
        decode_batch=max(0, did.generated_tokens - drafts.accepted_tokens),
        accepted_drafts=drafts.accepted_tokens,
        verifications=drafts.verifications,
        drafted_tokens=drafts.drafted_tokens,
    )
    if not did.steps or not did.gaps:
        if prompt_ms:
            prefilled = max(0, did.prefill_tokens)
            told = told if drafts.verifications else NOTHING
            return structs.replace(told, prefill_tokens=prefilled, prompt_ms=prompt_ms)
        return told if drafts.verifications else NOTHING
    return structs.replace(
        told,
        steps=did.steps,
        prefill_tokens=max(0, did.prefill_tokens),
        decode_kv_tokens=round(kv_tokens * did.steps),
        decode_ms=min(window_ms, did.steps * did.gaps_s / did.gaps * 1000),
        prompt_ms=prompt_ms,
    )
