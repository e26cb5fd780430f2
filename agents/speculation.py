"""Whether an engine should speculate: what its drafts bring, measured, and advice. Pure.

Drafts go *off*

- when the rolling share of drafts that are kept falls below `acceptance_min` (`acceptance`): they
  are tried again after `retry_s`, and twice as long after each vain attempt;
- when steps decode more than `batch_max` sequences (`batch`): until they decode fewer than
  `BATCH_AGAIN` of that.

The speed-up is *expected* by formula (`proto.speculation`) from the accept length, and *measured*
as the accept length times what a step took without drafts, by what it takes with them, at batches
of about the same size. Without steps of both kinds there is nothing to measure.
"""

from __future__ import annotations

from enum import StrEnum
from math import log2

import msgspec

from proto.load import StepSums
from proto.speculation import conditional_acceptance, expected_speedup

REMEMBERED_VERIFICATIONS = 2_000.0
"""After so many more, what was counted before weighs a half."""
VERIFICATIONS_MIN = 200
"""Fewer say nothing about acceptance."""
BATCH_AGAIN = 0.75
RETRY_MAX_S = 3_600.0
STEP_MEMORY = 0.8
"""What the mean of a step's time keeps of itself at each window."""


class Reason(StrEnum):
    """Why drafts are switched off; `RECOVERED`: why they are switched on again."""

    ACCEPTANCE = "acceptance"
    BATCH = "batch"
    RECOVERED = "recovered"


class DraftPolicy(msgspec.Struct, frozen=True):
    """When drafts are worth it; the module says what the fields mean. 0: no such limit."""

    acceptance_min: float = 0.0
    batch_max: float = 0.0
    retry_s: float = 60.0
    draft_cost: float = 0.08
    """What a draft's step takes of the target's, for the expected speed-up."""


class Advice(msgspec.Struct, frozen=True):
    """Drafts or no drafts from now on, and why."""

    on: bool
    reason: Reason


class DraftWatch:
    """One engine's drafts: fed with every window's sums, asked for advice."""

    def __init__(self, policy: DraftPolicy) -> None:
        self._policy = policy
        self._verifications = self._drafted = self._accepted = 0.0
        self._seen = 0
        """Verifications since drafts were last switched on."""
        self._off: Reason | None = None
        self._off_s = 0.0
        self._retry_s = policy.retry_s
        self._step_ms: dict[tuple[bool, int], float] = {}
        """Mean time of a step, with drafts or without, by the power of two of its batch."""
        self._batch = 0

    @property
    def wanted(self) -> bool:
        """Drafts are thought to be worth it."""
        return self._off is None

    @property
    def acceptance_rate(self) -> float:
        """Share of drafts that are kept, lately; 0 before the first."""
        return self._accepted / self._drafted if self._drafted else 0.0

    @property
    def accept_length(self) -> float:
        """Tokens a verification, lately; 1 before the first."""
        return 1 + self._accepted / self._verifications if self._verifications else 1.0

    @property
    def expected_speedup(self) -> float | None:
        """By formula, whatever the batch; None before the first draft."""
        if not self._verifications:
            return None
        drafts = round(self._drafted / self._verifications)
        acceptance = conditional_acceptance(self.accept_length, drafts)
        return expected_speedup(acceptance, drafts, self._policy.draft_cost)

    @property
    def measured_speedup(self) -> float | None:
        """At about the present batch; None where not both kinds of steps were seen."""
        with_ms = self._step_ms.get((True, self._batch))
        without_ms = self._step_ms.get((False, self._batch))
        if with_ms is None or without_ms is None:
            return None
        return self.accept_length * without_ms / with_ms

    def observe(self, sums: StepSums, now_s: float) -> Advice | None:
        """Take in a window; what is to be done about it, if anything."""
        if not sums.decode_batch:
            return self._try_again(now_s) if self._off is Reason.ACCEPTANCE else None
        batch = sums.decode_batch / sums.steps if sums.steps else 0.0  # 0: it does not tell
        self._remember(sums, batch)
        if self._off is None:
            return self._judge(batch, now_s)
        if self._off is Reason.BATCH and batch < BATCH_AGAIN * self._policy.batch_max:
            return self._on()
        return self._try_again(now_s) if self._off is Reason.ACCEPTANCE else None

    def _remember(self, sums: StepSums, batch: float) -> None:
        drafting = sums.verifications > 0
        self._batch = max(0, round(log2(max(1.0, batch))))
        if sums.steps and not sums.prefill_tokens:  # else what prompts took is in it
            key, step_ms = (drafting, self._batch), sums.decode_ms / sums.steps
            before = self._step_ms.get(key, step_ms)
            self._step_ms[key] = STEP_MEMORY * before + (1 - STEP_MEMORY) * step_ms
        if drafting:
            kept = 0.5 ** (sums.verifications / REMEMBERED_VERIFICATIONS)
            self._verifications = kept * self._verifications + sums.verifications
            self._drafted = kept * self._drafted + sums.drafted_tokens
            self._accepted = kept * self._accepted + sums.accepted_drafts
            self._seen += sums.verifications

    def _judge(self, batch: float, now_s: float) -> Advice | None:
        policy = self._policy
        if not self._verifications:  # it does not speculate at all
            return None
        if policy.batch_max and batch > policy.batch_max:
            return self._switch_off(Reason.BATCH, now_s)
        if self._seen < VERIFICATIONS_MIN or not self._drafted:
            return None
        if self.acceptance_rate < policy.acceptance_min:
            return self._switch_off(Reason.ACCEPTANCE, now_s)
        self._retry_s = policy.retry_s
        return None

    def _switch_off(self, reason: Reason, now_s: float) -> Advice:
        self._off, self._off_s = reason, now_s
        return Advice(on=False, reason=reason)

    def _try_again(self, now_s: float) -> Advice | None:
        if now_s - self._off_s < self._retry_s:
            return None
        self._retry_s = min(RETRY_MAX_S, 2 * self._retry_s)
        # What is to be judged is the text of now.
        self._verifications = self._drafted = self._accepted = 0.0
        return self._on()

    def _on(self) -> Advice:
        self._off, self._seen = None, 0
        return Advice(on=True, reason=Reason.RECOVERED)
