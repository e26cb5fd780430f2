"""Speculative decoding: how many drafts the target accepts, and what drafting and verifying cost.

For every decoding sequence a draft proposes K tokens, one after another; the target computes all of
them and the token before in one pass, keeps the longest prefix that it would have said itself, and
says one token more. So a verification advances a sequence by 1 to K + 1 tokens, and never by none.

**Acceptance.** A draft is accepted with the same probability, given that those before it were; the
probability depends on what kind of text is written and on whether it is sampled. The dice are a
hash of request and position: who is served when, and beside whom, changes nothing.

**Cost.** A step with `batch` sequences and K drafts for each takes longer by

    K * draft_cost * (decode_base + decode_sequence * batch + decode_kv_token * kv_tokens)
    + arithmetic_ms(batch * K)

The first line is the draft, `draft_cost` times as dear as the target. The second is verifying: a
draft costs the target what a prompt token does. (The measurements show no arithmetic that hides
behind the reading of weights: each further sequence takes its time from the second one on.) So with
many sequences speculation costs more than it brings.

**Memory.** The draft's weights and cache take `draft_memory` of the KV cache, on or off.
"""

from __future__ import annotations

import math
import zlib

import msgspec

from workers.sim.timing import StepCost

SAMPLED = "sampled"
"""What is added to a kind of text, as in `chat/sampled`, where tokens are drawn and not the
likeliest are taken."""
_MASK = (1 << 64) - 1


class BadSpeculation(ValueError):
    """Says what is wrong with a configuration."""


class Speculation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an engine speculates; the module says what the fields mean."""

    num_speculative_tokens: int = 5
    acceptance: float = 0.7
    acceptance_of: dict[str, float] = {}
    """By kind of text, where it differs; `chat/sampled` before `chat`."""
    draft_cost: float = 0.08
    draft_memory: float = 0.05

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if not 1 <= self.num_speculative_tokens <= 64:
            raise BadSpeculation("num_speculative_tokens must be from 1 to 64")
        for rate in (self.acceptance, *self.acceptance_of.values()):
            if not 0 <= rate < 1:
                raise BadSpeculation("acceptance must be at least 0 and below 1")
        if not self.draft_cost >= 0 or not 0 <= self.draft_memory < 1:
            raise BadSpeculation("draft_cost and draft_memory must not be negative, memory below 1")

    def rate(self, kind: str) -> float:
        """Probability that the next draft is accepted."""
        of = self.acceptance_of
        return of.get(kind, of.get(kind.partition("/")[0], self.acceptance))

    def accepted(self, request: int | str, position: int, kind: str, drafts: int) -> int:
        """How many of `drafts` the target keeps that follow token `position` of an answer."""
        rate = self.rate(kind)
        if not rate:
            return 0
        # One draw from a geometric distribution: at least n with probability rate ** n.
        return min(drafts, int(math.log(_chance(request, position)) / math.log(rate)))

    def extra_ms(self, cost: StepCost, drafts: int, work: tuple[int, float, int, int]) -> float:
        """What `drafts` for each sequence add to a step; `work` is `StepCost.step_ms`'s."""
        prefill_tokens, _, batch, kv_tokens = work
        if not (drafts and batch):
            return 0.0
        pass_ms = cost.step_ms(0, 0, batch, kv_tokens)
        if prefill_tokens:
            with_drafts_ms = cost.prefill_ms(prefill_tokens + batch * drafts)
            verify_ms = with_drafts_ms - cost.prefill_ms(prefill_tokens)
        else:
            verify_ms = cost.arithmetic_ms(batch * drafts)
        return drafts * self.draft_cost * pass_ms + verify_ms


class Tally(msgspec.Struct):
    """What came of speculation since the engine was made, as vLLM counts it."""

    verifications: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    accepted_at: list[int] = []
    """By position among the drafts."""

    def count(self, drafted: int, accepted: int) -> None:
        """One sequence was verified."""
        self.verifications += 1
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        self.accepted_at += [0] * (drafted - len(self.accepted_at))
        for position in range(accepted):
            self.accepted_at[position] += 1


def _chance(request: int | str, position: int) -> float:
    """Evenly distributed above 0 and up to 1: splitmix64 of both."""
    seed = zlib.crc32(str(request).encode())
    z = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((z ^ (z >> 31)) + 1) / (1 << 64)
