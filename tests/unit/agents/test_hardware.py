"""What an agent registers of its engine's hardware, and what it counts as used."""

from __future__ import annotations

import msgspec
import pytest

from agents.adapters.protocol import EngineLoad, EngineWork
from agents.hardware import PrecisionUnknown, hardware_of
from agents.settings import AgentSettings
from agents.usage import Usage, UsageMeter
from proto.hardware import load_catalogue
from proto.workers import Hardware

CATALOGUE = load_catalogue()


def settings(**given: object) -> AgentSettings:
    return AgentSettings.model_validate(
        {"worker": "w", "engine_url": "http://127.0.0.1:1", **given}
    )


def load(work: EngineWork | None, started_s: float = 1.0) -> EngineLoad:
    return EngineLoad(0, 0, 0, 0, 0, 0, 0, 0, started_s, work)


def test_what_the_catalogue_knows_is_registered() -> None:
    given = settings(hardware="h200-sxm", accelerators=4, precision="fp8", moe=True)
    told = hardware_of(given, CATALOGUE)
    assert (told.memory_gb, told.bandwidth_gb_s, told.nvlink_accelerators) == (141, 4800, 8)
    assert (told.precision, told.accelerators, told.moe) == ("fp8", 4, True)
    assert told.price_per_hour == pytest.approx(16.0)


def test_the_operators_price_counts() -> None:
    told = hardware_of(settings(hardware="h100", price_per_hour=2.5), CATALOGUE)
    assert told.price_per_hour == 2.5


def test_hardware_that_nobody_knows_is_only_a_label() -> None:
    told = hardware_of(settings(hardware="abacus", precision="fp9"), CATALOGUE)
    assert told == Hardware(profile="abacus", precision="fp9")


def test_a_precision_that_the_hardware_has_not_is_refused() -> None:
    with pytest.raises(PrecisionUnknown, match="fp8, which A100 SXM 80GB has not: fp16, bf16"):
        hardware_of(settings(hardware="a100", precision="fp8"), CATALOGUE)


def test_accelerators_cost_while_they_are_held_and_tokens_count_by_difference() -> None:
    meter = UsageMeter(Hardware(accelerators=8, price_per_hour=36.0))
    done = EngineWork(10, 1_000, 100, 0, 0.0)
    assert meter.take(load(done), 100.0) == Usage()
    idle = meter.take(load(done), 110.0)
    assert idle.accelerator_seconds == 80.0
    assert idle.dollars == pytest.approx(0.1)
    more = msgspec.structs.replace(done, prefill_tokens=1_500, generated_tokens=150)
    busy = meter.take(load(more), 120.0)
    assert (busy.prefill_tokens, busy.generated_tokens) == (500, 50)


def test_another_life_of_the_engine_costs_and_counts_anew() -> None:
    meter = UsageMeter(Hardware())
    meter.take(load(EngineWork(10, 1_000, 100, 0, 0.0)), 0.0)
    restarted = meter.take(load(EngineWork(1, 5, 5, 0, 0.0), started_s=2.0), 4.0)
    assert restarted == Usage(accelerator_seconds=4.0)
    assert meter.take(load(EngineWork(2, 7, 9, 0, 0.0), started_s=2.0), 5.0).prefill_tokens == 2
