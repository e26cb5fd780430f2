"""What a worker is busy with, pushed by its agent several times a second."""

from __future__ import annotations

import msgspec

from proto.ids import WorkerId
from proto.kv import Tier
from proto.numbers import Count, Span


class StepSums(msgspec.Struct, frozen=True, array_like=True):
    """Engine steps since the report before, as sums, so that averages can be formed later.

    The capacity model is learned from these. All zero where an engine does not tell.
    """

    steps: Count = 0
    prefill_tokens: Count = 0
    prefill_ms: Span = 0.0
    decode_batch: Count = 0
    decode_kv_tokens: Count = 0
    decode_ms: Span = 0.0
    accepted_drafts: Count = 0
    """Tokens beyond one for each sequence and step. `decode_batch` counts sequences, not tokens."""
    verifications: Count = 0
    """Sequences times steps with drafts."""
    drafted_tokens: Count = 0
    prompt_ms: Span = 0.0
    """What the prompts of `prefill_tokens` took, each from its scheduling to its first token: part
    of the steps' time, where those are told, and told also where nothing was decoded."""

    @property
    def accept_length(self) -> float:
        """Tokens that a sequence got from a step, on average; 1 without speculation (SD7)."""
        return 1 + self.accepted_drafts / self.decode_batch if self.decode_batch else 1.0


class TierSum(msgspec.Struct, frozen=True, array_like=True):
    """What one tier holds, summed up: how many blocks, and the exclusive or of their names."""

    tier: Tier
    blocks: Count
    digest: int


class LoadReport(msgspec.Struct, frozen=True, array_like=True):
    """One worker at one moment. Counters are gauges unless they say otherwise.

    `kv_sequence`, `live_blocks` and `digest` describe the agent's live set of the GPU tier after
    that KV batch: a reader that has applied exactly `kv_sequence` batches must have the same. So it
    is with `slower`, where the agent tells it.
    """

    worker: WorkerId
    running: Count
    waiting: Count
    queued_prefill_tokens: Count
    decode_kv_tokens: Count
    used_blocks: Count
    total_blocks: Count
    kv_sequence: int
    live_blocks: Count
    digest: int
    healthy: bool = True
    draining: bool = False
    preemptions: Count = 0
    cached_tokens: Count = 0
    """Prompt tokens the engine found in its cache, as a counter since the engine started."""
    queried_tokens: Count = 0
    """Prompt tokens the engine looked up in its cache, as a counter since the engine started."""
    steps: StepSums = StepSums()
    slower: tuple[TierSum, ...] | None = None
    """Each slower tier that holds anything, nearest first; None if the agent does not say."""
