"""What follows from advice: a switch is set, and set again where the engine has forgotten."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from agents.adapters.protocol import DraftSwitch, EngineAway, EngineWork
from agents.adapters.sim import SimAdapter
from agents.adapters.vllm import VllmAdapter
from agents.canary import ROUNDS_MIN, CanaryPolicy
from agents.drafts import Drafts
from agents.metrics import AgentMetrics
from agents.speculation import DraftPolicy
from agents.steps import NOTHING
from tests.unit.agents.test_speculation import window

pytestmark = pytest.mark.anyio

POLICY = DraftPolicy(acceptance_min=0.3, batch_max=32)


class Switch:
    """An engine that can be away."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.away = False

    async def speculate(self, *, on: bool) -> None:
        if self.away:
            raise EngineAway("nobody answers")
        self.told.append(on)

    async def say(self) -> Sequence[int]:
        return [1, 2, 3]


def drafts(switch: DraftSwitch | None) -> tuple[Drafts, CollectorRegistry]:
    registry = CollectorRegistry()
    return Drafts(POLICY, CanaryPolicy(), switch, AgentMetrics(registry)), registry


async def test_the_switch_follows_the_advice() -> None:
    switch = Switch()
    watched, _ = drafts(switch)
    await watched.take(window(batch=40), None, 0.0)
    assert switch.told == [False]
    await watched.take(window(batch=40, drafts=0), None, 1.0)
    assert switch.told == [False]  # it has heard
    await watched.take(window(batch=10, drafts=0), None, 2.0)
    assert switch.told == [False, True]


async def test_an_engine_that_was_away_or_has_forgotten_is_told_again() -> None:
    switch = Switch()
    switch.away = True
    watched, _ = drafts(switch)
    await watched.take(window(batch=40), None, 0.0)
    switch.away = False
    await watched.take(window(batch=40), None, 1.0)
    assert switch.told == [False]


async def test_without_a_switch_it_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    watched, registry = drafts(None)
    with caplog.at_level(logging.WARNING):
        await watched.take(window(accepted=0.1), None, 0.0)
    assert "speculation should be off (acceptance): 10 % of drafts" in caplog.text
    labels = {"to": "off", "reason": "acceptance"}
    assert registry.get_sample_value("tokenplane_agent_draft_switches_total", labels) == 1
    assert registry.get_sample_value("tokenplane_agent_drafts_wanted") == 0
    accepted = registry.get_sample_value("tokenplane_agent_drafts_total", {"outcome": "accepted"})
    assert accepted == window(accepted=0.1).accepted_drafts


async def test_a_trial_switches_drafts_off_and_on_and_ends_in_its_verdict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SD13: half of the time without, and without for good as they made answers slower."""
    registry, switch = CollectorRegistry(), Switch()
    watched = Drafts(POLICY, CanaryPolicy(30.0), switch, AgentMetrics(registry))
    work = EngineWork(0, 0, 0, 0, 0.0)
    await watched.take(window(), work, 0.0)
    for arm in range(2 * ROUNDS_MIN):
        gaps_s = 50.0 if watched.wanted else 40.0
        work = EngineWork(
            0, 0, work.generated_tokens + 1_000, 0, work.gaps_s + gaps_s, None,
            work.first_tokens + 10, work.first_tokens_s + 1.0,
        )  # fmt: skip
        await watched.take(NOTHING, work, 30.0 * (arm + 1))
    assert switch.told == [False, True] * (ROUNDS_MIN - 1) + [False, False]
    labels = {"to": "off", "reason": "tpot"}
    assert registry.get_sample_value("tokenplane_agent_draft_switches_total", labels) == 1
    assert registry.get_sample_value("tokenplane_agent_draft_trial_tpot_ratio") == (
        pytest.approx(1.25)
    )
    assert "given up (tpot)" in caplog.text
    await watched.take(window(), work, 999.0)  # it has forgotten
    assert switch.told[-2:] == [False, False] and not watched.wanted


async def test_an_engine_that_cannot_be_switched_cannot_be_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = Drafts(POLICY, CanaryPolicy(30.0), None, AgentMetrics(CollectorRegistry()))
    assert "cannot be tried" in caplog.text and watched.wanted


async def test_who_does_not_speculate_is_left_alone() -> None:
    switch = Switch()
    watched, _ = drafts(switch)
    await watched.take(window(batch=100, drafts=0), None, 0.0)
    assert switch.told == []


def test_only_the_simulated_engine_can_be_switched() -> None:
    assert issubclass(SimAdapter, DraftSwitch)
    assert not issubclass(VllmAdapter, DraftSwitch)
