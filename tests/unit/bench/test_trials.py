from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from bench.deciders import Decision, WrongAnswer
from bench.prompts import Prompt, some_hot, workload
from bench.trials import TOKEN_S, Stay, pace, place

pytestmark = pytest.mark.anyio

HELD, NEW = Prompt([1, 2, 3, 4], 0, 2), Prompt([5, 6, 7, 8], 1, 2)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class Recorder:
    """Answers by a plan and remembers what it was asked and given back."""

    def __init__(self, plan: list[Decision]) -> None:
        self.plan = plan
        self.asked: list[int] = []
        self.freed: list[str] = []

    async def decide(self, prompt: int, caller: int) -> Decision:
        self.asked.append(prompt)
        return self.plan[len(self.asked) - 1]

    async def free(self, decision: Decision, caller: int) -> None:
        self.freed.append(decision.name)


async def test_every_prompt_is_asked_for_and_everything_given_back() -> None:
    plan = [Decision(number % 2, 2, str(number)) for number in range(4)]
    decider = Recorder(plan)
    took = await pace(decider, [HELD, NEW], passes=2, callers=3, servers=[])
    assert Counter(decider.asked) == {0: 2, 1: 2}
    assert sorted(decider.freed) == ["0", "1", "2", "3"]
    assert took.on_holder == 1.0
    assert 0 < took.p50_ms <= took.p99_ms


async def test_one_who_stays_must_know_what_the_holder_has() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        await pace(Recorder([Decision(0, 1, "")]), [HELD], passes=1, callers=1, servers=[])
    assert caught.group_contains(WrongAnswer, match="1 of 2 tokens")


async def test_a_prompt_waits_for_what_its_worker_has_to_do() -> None:
    # At such a load all arrive at once: the second waits for the first's 2,000 tokens.
    plan = [Decision(0, 2_000, "first"), Decision(0, 0, "second"), Decision(1, 0, "third")]
    decider = Recorder(plan)
    long = [Prompt([1] * 4_000, 0, 2_000), Prompt([2] * 4_000, 1, 2_000)]
    found = await place(decider, [*long, long[0]], [0, 1, 2], 2, 1e12, 3, rng())
    assert found.first_ms >= 1e3 * TOKEN_S * (2_000 + (2_000 + 4_000) + 4_000) / 3
    assert found.on_holder == pytest.approx(1 / 3)
    assert decider.freed == ["first", "third", "second"]


async def test_one_caller_is_enough_and_bookings_end() -> None:
    plan = [Decision(0, 2, str(number)) for number in range(20)]
    decider = Recorder(plan)
    found = await place(decider, [HELD], [0] * 20, 1, load=1e12, callers=1, rng=rng())
    assert found.on_holder == 1.0
    assert sorted(decider.freed, key=int) == [decision.name for decision in plan]


async def test_who_always_stays_is_always_on_the_holder() -> None:
    work = workload(4, 50, tokens=64, chains=2, rng=rng())
    stay = Stay(work.prompts)
    found = await place(stay, work.prompts, range(50), 4, load=0.5, callers=8, rng=rng())
    assert found.on_holder == 1.0
    assert found.first_ms >= 1e3 * TOKEN_S * 32


def test_a_prompts_first_half_is_a_chain_of_its_holder() -> None:
    work = workload(3, 20, tokens=64, chains=2, rng=rng())
    assert [len(chains) for chains in work.chains] == [2, 2, 2]
    assert {prompt.holder for prompt in work.prompts} == {0, 1, 2}
    for prompt in work.prompts:
        halves = [chain[:32].tolist() for chain in work.chains[prompt.holder]]
        assert prompt.tokens[: prompt.cached_tokens] in halves
        assert len(prompt.tokens) == 64


def test_hot_workers_hold_more_than_their_share_of_what_is_asked() -> None:
    chance = rng()
    prompts = workload(16, 800, tokens=32, chains=1, rng=chance).prompts
    order = some_hot(prompts, 16, chance)
    hot = sum(prompts[number].holder < 2 for number in order) / len(order)
    assert len(order) == 800
    assert 0.3 < hot < 0.45
