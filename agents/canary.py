"""Drafts on trial: on and off in turn, compared, and kept or given up for good (SD13). Pure.

In each *round* an engine drafts for `arm_s` and goes without for as long, so that both are tried on
the same traffic. Compared is what users notice: the mean time to the first token, and the mean time
of each token after it. From `ROUNDS_MIN` rounds on, the median of the rounds' ratios decides:

- the time per token is not shorter, or prompts wait longer than `ttft_ratio_max` allows: drafts are
  given up, until the agent is told otherwise by a restart;
- after `ROUNDS` without that, they are kept.

Beside it, one greedy question is asked in every arm. Another answer than before, and drafts are
given up at once: they may change when words come, and never which.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from statistics import median

import msgspec

from agents.adapters.protocol import EngineWork

ROUNDS_MIN, ROUNDS = 3, 6
PROMPTS_MIN, TOKENS_MIN = 5, 100
"""An arm with fewer says nothing, and is tried again."""


class CanaryPolicy(msgspec.Struct, frozen=True):
    """How drafts are tried. `arm_s` 0: they are not."""

    arm_s: float = 0.0
    ttft_ratio_max: float = 1.2
    tpot_ratio_max: float = 1.0


class Stage(StrEnum):
    """How far a trial is, or why it has ended."""

    NONE = "none"
    RUNNING = "running"
    KEPT = "kept"
    TTFT = "ttft"
    TPOT = "tpot"
    PARITY = "parity"


class Felt(msgspec.Struct, frozen=True):
    """What users felt of one arm, in seconds."""

    ttft_s: float
    tpot_s: float


class Canary:
    """One engine's trial: told what the engine has done, asked whether it should draft now."""

    def __init__(self, policy: CanaryPolicy) -> None:
        self._policy = policy
        self.stage = Stage.RUNNING if policy.arm_s else Stage.NONE
        self._drafting = True
        self._before: EngineWork | None = None
        self._generated = 0
        self._since_s = 0.0
        self._with: Felt | None = None
        self._ttft: list[float] = []
        self._tpot: list[float] = []
        self._answer: Sequence[int] | None = None

    @property
    def wanted(self) -> bool:
        """Whether the engine should draft now."""
        if self.stage is Stage.RUNNING:
            return self._drafting
        return self.stage in (Stage.NONE, Stage.KEPT)

    @property
    def ttft_ratio(self) -> float:
        """With drafts by without; 1 before the first round."""
        return median(self._ttft or [1.0])

    @property
    def tpot_ratio(self) -> float:
        """As `ttft_ratio`."""
        return median(self._tpot or [1.0])

    def observe(self, work: EngineWork, now_s: float) -> bool:
        """Take in all that the engine has done since its start; True where an arm has ended."""
        before, restarted = self._before, work.generated_tokens < self._generated
        self._generated = work.generated_tokens
        if self.stage is not Stage.RUNNING:
            return False
        if before is None or restarted:
            self._begin(work, now_s)
            return False
        if now_s - self._since_s < self._policy.arm_s:
            return False
        felt = _felt(work.since(before))
        self._begin(work, now_s)
        if felt is not None:
            self._end(felt)
        return True

    def pause(self) -> None:
        """The engine does not do as it is told in this arm: begin it anew."""
        self._before = None

    def heard(self, answer: Sequence[int]) -> None:
        """The greedy answer of this arm."""
        if self._answer is None:
            self._answer = answer
        elif self.stage is Stage.RUNNING and self._answer != answer:
            self.stage = Stage.PARITY

    def _begin(self, work: EngineWork, now_s: float) -> None:
        self._before, self._since_s = work, now_s

    def _end(self, felt: Felt) -> None:
        if self._with is None:
            self._with, self._drafting = felt, False
            return
        self._ttft.append(self._with.ttft_s / felt.ttft_s)
        self._tpot.append(self._with.tpot_s / felt.tpot_s)
        self._with, self._drafting = None, True
        self._judge()

    def _judge(self) -> None:
        rounds = len(self._tpot)
        if rounds < ROUNDS_MIN:
            return
        if self.tpot_ratio > self._policy.tpot_ratio_max:
            self.stage = Stage.TPOT
        elif self.ttft_ratio > self._policy.ttft_ratio_max:
            self.stage = Stage.TTFT
        elif rounds >= ROUNDS:
            self.stage = Stage.KEPT


def _felt(did: EngineWork) -> Felt | None:
    """None: too little to tell."""
    tokens = did.generated_tokens - did.first_tokens
    if did.first_tokens < PROMPTS_MIN or tokens < TOKENS_MIN:
        return None
    felt = Felt(did.first_tokens_s / did.first_tokens, did.gaps_s / tokens)
    return felt if felt.ttft_s > 0 and felt.tpot_s > 0 else None
