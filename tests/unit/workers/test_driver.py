"""The real-time driver, with a clock that a test holds in its hand."""

from __future__ import annotations

import pytest

from workers.sim.driver import CATCH_UP_S, Driver, Refused
from workers.sim.engine import Engine
from workers.sim.generation import Generation, Sampling
from workers.sim.language import LanguageModel
from workers.sim.metrics import Metrics
from workers.sim.timing import LAPTOP

pytestmark = pytest.mark.anyio

STEP_S = 0.0051
"""A decode step of one short sequence, about."""


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def generation(id: str) -> Generation:
    model = LanguageModel({0: " word"}, end_id=1)
    sampling = Sampling(max_tokens=15_000)
    return Generation(id, [7] * 8, sampling, model, context_tokens=16_000, notify=lambda: None)


def driver(clock: Clock, speed: float = 1.0) -> Driver:
    engine = Engine(LAPTOP, block_tokens=16, closed_form=False)
    metrics = Metrics("sim", engine, speed)
    return Driver(engine, metrics, speed=speed, waiting_max=8, events=None, clock=clock)


@pytest.mark.parametrize("speed", [1.0, 1000.0])
async def test_a_long_standstill_is_not_caught_up_with(speed: float) -> None:
    clock = Clock()
    stopped = driver(clock, speed)
    asked, others = generation("asked"), [generation(f"other {n}") for n in range(3)]
    for each in (asked, *others):
        stopped.submit(each)
    before = 0
    for other in others:
        clock.now_s += 3600
        stopped.cancel(other)  # like everything else, it first brings the engine up to now
        made = asked.produced_tokens - before
        before = asked.produced_tokens
        assert 0 < made <= CATCH_UP_S * speed / STEP_S + 2


async def test_a_little_lateness_is_caught_up_with_exactly() -> None:
    clock = Clock()
    late = driver(clock)
    asked, other = generation("asked"), generation("other")
    late.submit(asked)
    late.submit(other)
    clock.now_s += CATCH_UP_S
    late.cancel(other)
    assert asked.produced_tokens == pytest.approx(CATCH_UP_S / STEP_S, abs=1)
    assert asked.last_token_s <= clock.now_s


async def test_once_stopped_it_refuses_and_has_failed_what_was_under_way() -> None:
    clock = Clock()
    ending = driver(clock)
    asked = generation("asked")
    ending.submit(asked)
    assert ending.healthy
    ending.stop()
    assert asked.error == "The engine is shutting down." and not ending.healthy
    with pytest.raises(Refused, match="shutting down"):
        ending.submit(generation("late"))
