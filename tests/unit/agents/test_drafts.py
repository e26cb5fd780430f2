"""What follows from advice: a switch is set, and set again where the engine has forgotten."""

from __future__ import annotations

import logging

import pytest
from prometheus_client import CollectorRegistry

from agents.adapters.protocol import DraftSwitch, EngineAway
from agents.adapters.sim import SimAdapter
from agents.adapters.vllm import VllmAdapter
from agents.drafts import Drafts
from agents.metrics import AgentMetrics
from agents.speculation import DraftPolicy
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


def drafts(switch: DraftSwitch | None) -> tuple[Drafts, CollectorRegistry]:
    registry = CollectorRegistry()
    return Drafts(POLICY, switch, AgentMetrics(registry)), registry


async def test_the_switch_follows_the_advice() -> None:
    switch = Switch()
    watched, _ = drafts(switch)
    await watched.take(window(batch=40), 0.0)
    assert switch.told == [False]
    await watched.take(window(batch=40, drafts=0), 1.0)
    assert switch.told == [False]  # it has heard
    await watched.take(window(batch=10, drafts=0), 2.0)
    assert switch.told == [False, True]


async def test_an_engine_that_was_away_or_has_forgotten_is_told_again() -> None:
    switch = Switch()
    switch.away = True
    watched, _ = drafts(switch)
    await watched.take(window(batch=40), 0.0)
    switch.away = False
    await watched.take(window(batch=40), 1.0)
    assert switch.told == [False]


async def test_without_a_switch_it_is_said_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    watched, registry = drafts(None)
    with caplog.at_level(logging.WARNING):
        await watched.take(window(accepted=0.1), 0.0)
    assert "speculation should be off (acceptance): 10 % of drafts" in caplog.text
    labels = {"to": "off", "reason": "acceptance"}
    assert registry.get_sample_value("tokenplane_agent_draft_switches_total", labels) == 1
    assert registry.get_sample_value("tokenplane_agent_drafts_wanted") == 0
    accepted = registry.get_sample_value("tokenplane_agent_drafts_total", {"outcome": "accepted"})
    assert accepted == window(accepted=0.1).accepted_drafts


async def test_who_does_not_speculate_is_left_alone() -> None:
    switch = Switch()
    watched, _ = drafts(switch)
    await watched.take(window(batch=100, drafts=0), 0.0)
    assert switch.told == []


def test_only_the_simulated_engine_can_be_switched() -> None:
    assert issubclass(SimAdapter, DraftSwitch)
    assert not issubclass(VllmAdapter, DraftSwitch)
