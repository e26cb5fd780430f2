"""Routers let requests wait only where the planner has long added workers (requirement AS19)."""

from __future__ import annotations

import pytest

from controlplane.compose import PlannerProcess
from controlplane.planner.phase import PhaseMemory
from controlplane.planner.plan import propose
from controlplane.planner.settings import PlannerSettings
from controlplane.router.settings import RouterSettings
from controlplane.runtime.settings import SettingsError, load
from proto.scaling import Action
from proto.workers import Role
from tests.unit.controlplane.planner.scenes import ENGINE, phase, pool, worker
from tests.unit.controlplane.planner.scenes import load as demand

SCALED, SHED = "TOKENPLANE_PLANNER__KV_MAX", "TOKENPLANE_ROUTER__BUSY_DECODE_SHARE"


@pytest.mark.parametrize(("scaled", "shed"), [("0.85", "0.7"), ("0.8", "0.8")])
def test_as19_a_planner_refuses_to_start_where_routers_would_shed_first(
    scaled: str, shed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCALED, scaled)
    monkeypatch.setenv(SHED, shed)
    with pytest.raises(SettingsError, match=r"must be above planner\.kv_max"):
        load(PlannerProcess, [])


@pytest.mark.parametrize(("scaled", "shed"), [("0.7", "0.85"), ("0.9", "0")])
def test_as19_shedding_above_scaling_is_fine_and_so_is_no_shedding(
    scaled: str, shed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCALED, scaled)
    monkeypatch.setenv(SHED, shed)
    settings = load(PlannerProcess, [])
    assert settings.router.busy_decode_share == float(shed)


def test_as19_engines_are_added_long_before_their_queues_make_them_busy() -> None:
    """By the settings that both are shipped with."""
    rules, limits = PlannerSettings().rules, RouterSettings().busy_limits
    queued = 0
    while True:
        queued += 1_000
        view = phase(demand(0.5, ttft_ms=500.0, queued=queued), pool(ready=1), role=Role.PREFILL)
        if propose(view, PhaseMemory(), rules, 0.0).action is Action.UP:
            break
    assert queued <= limits.prefill_batches * ENGINE.budget_tokens / 2
    assert not limits.exceeded(worker("w0"), queued, 0)
