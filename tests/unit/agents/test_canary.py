"""Drafts on trial (SD13): what is compared, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from agents.adapters.protocol import EngineWork
from agents.canary import ROUNDS, ROUNDS_MIN, Canary, CanaryPolicy, Stage

ARM_S = 30.0
POLICY = CanaryPolicy(ARM_S)
PROMPTS, TOKENS = 20, 2_000


class Played:
    """An engine that is faster or slower while it drafts."""

    def __init__(self, policy: CanaryPolicy = POLICY) -> None:
        self.canary = Canary(policy)
        self.work = EngineWork(0, 0, 0, 0, 0.0)
        self.now_s = 0.0
        self.drafted: list[bool] = []
        self.canary.observe(self.work, self.now_s)

    def arm(self, *, ttft: float, tpot: float, prompts: int = PROMPTS) -> bool:
        """An arm; the ratios are what drafts would do."""
        on = self.canary.wanted
        self.drafted.append(on)
        firsts_s = prompts * 0.2 * (ttft if on else 1.0)
        gaps_s = TOKENS * 0.02 * (tpot if on else 1.0)
        before = self.work
        self.work = EngineWork(
            0, 0, before.generated_tokens + prompts + TOKENS,
            0, before.gaps_s + gaps_s, None,
            before.first_tokens + prompts, before.first_tokens_s + firsts_s,
        )  # fmt: skip
        self.now_s += ARM_S
        return self.canary.observe(self.work, self.now_s)

    def rounds(self, count: int, *, ttft: float = 1.0, tpot: float = 0.5) -> None:
        for _ in range(2 * count):
            assert self.arm(ttft=ttft, tpot=tpot)


def test_without_a_trial_nothing_changes() -> None:
    canary = Canary(CanaryPolicy())
    assert canary.wanted
    assert not canary.observe(EngineWork(0, 0, 0, 0, 0.0), 100.0)
    assert (canary.stage, canary.wanted) == (Stage.NONE, True)


def test_good_drafts_are_kept_after_some_rounds_of_both() -> None:
    played = Played()
    played.rounds(ROUNDS)
    assert played.drafted == [True, False] * ROUNDS
    assert (played.canary.stage, played.canary.wanted) == (Stage.KEPT, True)
    assert played.canary.tpot_ratio == pytest.approx(0.5)


@pytest.mark.parametrize(("ttft", "tpot", "why"), [(1.0, 1.1, Stage.TPOT), (1.5, 0.5, Stage.TTFT)])
def test_what_users_would_notice_rolls_back_for_good(ttft: float, tpot: float, why: Stage) -> None:
    played = Played()
    played.rounds(ROUNDS_MIN, ttft=ttft, tpot=tpot)
    assert (played.canary.stage, played.canary.wanted) == (why, False)
    assert not played.arm(ttft=1.0, tpot=0.1)
    assert not played.canary.wanted


def test_one_bad_round_alone_decides_nothing() -> None:
    played = Played()
    played.rounds(1, tpot=5.0)
    played.rounds(ROUNDS - 1)
    assert played.canary.stage is Stage.KEPT


def test_too_little_traffic_is_no_round() -> None:
    played = Played()
    for _ in range(2 * ROUNDS):
        played.arm(ttft=1.0, tpot=9.0, prompts=1)
    assert (played.canary.stage, played.canary.wanted) == (Stage.RUNNING, True)


def test_an_arm_is_not_judged_before_its_end_nor_across_a_restart() -> None:
    played = Played()
    assert not played.canary.observe(EngineWork(0, 0, 5_000, 0, 99.0, None, 99, 99.0), 1.0)
    assert not played.canary.observe(EngineWork(0, 0, 10, 0, 0.1, None, 1, 0.1), ARM_S + 1)
    assert played.canary.wanted


@pytest.mark.parametrize(
    ("answers", "stage"),
    [([(1, 2), (1, 2), (1, 2)], Stage.RUNNING), ([(1, 2), (1, 3)], Stage.PARITY)],
)
def test_another_answer_with_drafts_than_without_rolls_back_at_once(
    answers: Sequence[Sequence[int]], stage: Stage
) -> None:
    played = Played()
    for answer in answers:
        played.canary.heard(answer)
    assert played.canary.stage is stage
    assert played.canary.wanted is (stage is Stage.RUNNING)
