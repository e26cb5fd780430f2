"""Step sums from counters: by hand, and by a simulated engine whose steps are known."""

from __future__ import annotations

import random

import pytest

from agents.adapters.protocol import EngineDrafts, EngineLoad, EngineWork
from agents.adapters.vllm_metrics import CacheConfig, read_load
from agents.steps import NOTHING, WINDOW_S, StepMeter
from controlplane.capacity import CapacityModel
from proto.load import StepSums
from workers.sim.engine import Engine
from workers.sim.generation import Generation, Sampling
from workers.sim.language import LanguageModel
from workers.sim.metrics import Metrics
from workers.sim.naming import BlockNamer
from workers.sim.timing import H100


def load(work: EngineWork | None, *, kv_tokens: int = 0, queried: int = 0) -> EngineLoad:
    return EngineLoad(1, 0, 0, kv_tokens, 0, 0, 0, queried, None, work)


def test_sums_are_differences_over_a_window() -> None:
    meter = StepMeter()
    assert meter.take(load(EngineWork(10, 100, 50, 40, 1.0), kv_tokens=900), 5.0) == NOTHING
    assert meter.take(load(EngineWork(11, 100, 52, 42, 1.1)), 5.0 + WINDOW_S / 2) == NOTHING
    sums = meter.take(load(EngineWork(30, 600, 130, 110, 4.5), kv_tokens=1_100), 5.0 + WINDOW_S)
    assert sums == StepSums(
        steps=20, prefill_tokens=500, decode_batch=80, decode_kv_tokens=20_000, decode_ms=1_000.0
    )


def test_accepted_drafts_are_tokens_and_no_sequences() -> None:
    """SD7: counters of drafts are differenced over the window, too."""
    meter = StepMeter()
    before = EngineWork(10, 100, 50, 40, 1.0, EngineDrafts(30, 150, 60))
    meter.take(load(before), 0.0)
    after = EngineWork(30, 100, 250, 120, 3.0, EngineDrafts(110, 550, 180))
    sums = meter.take(load(after), WINDOW_S)
    assert (sums.verifications, sums.drafted_tokens, sums.accepted_drafts) == (80, 400, 120)
    assert sums.decode_batch == 200 - 120
    assert sums.accept_length == 2.5


def test_steps_never_take_longer_than_there_was_time() -> None:
    meter = StepMeter()
    meter.take(load(EngineWork(0, 0, 0, 0, 0.0)), 0.0)
    sums = meter.take(load(EngineWork(100, 0, 100, 100, 9.0)), WINDOW_S)
    assert sums.decode_ms == WINDOW_S * 1000


@pytest.mark.parametrize(
    "second",
    [
        load(None),
        load(EngineWork(10, 100, 50, 40, 1.0)),
        load(EngineWork(20, 900, 60, 40, 1.0)),
        load(EngineWork(1, 10, 5, 4, 0.1), queried=-1),
    ],
    ids=["not told", "idle", "only prompts", "another life"],
)
def test_a_window_that_tells_nothing_gives_nothing(second: EngineLoad) -> None:
    meter = StepMeter()
    meter.take(load(EngineWork(10, 100, 50, 40, 1.0)), 0.0)
    assert meter.take(second, WINDOW_S) == NOTHING


def test_an_engine_that_only_prefills_tells_how_long_prompts_take() -> None:
    meter = StepMeter()
    meter.take(load(EngineWork(10, 100, 50, 40, 1.0, prompts_s=0.5)), 0.0)
    told = meter.take(load(EngineWork(20, 900, 51, 40, 1.0, prompts_s=0.75)), WINDOW_S)
    assert told == StepSums(prefill_tokens=800, prompt_ms=250)


def test_a_simulated_engines_speed_is_learned_from_its_metrics_alone() -> None:
    """Scraped four times a second, as an agent does: the curve predicts decode steps and prompts
    within a fifth of what the engine's timing says."""
    engine = Engine(H100, block_tokens=16)
    metrics = Metrics("m", engine, speed=1.0)
    language = LanguageModel({i: f" w{i}" for i in range(100)}, end_id=100)
    namer, rng = BlockNamer(16), random.Random(0)
    cache = CacheConfig(16, engine.load().total_blocks)
    meter, model = StepMeter(), CapacityModel()
    running: dict[str, Generation] = {}
    now_s, next_s, asked = 0.0, 0.0, 0
    while now_s < 240.0:
        if now_s >= next_s:
            next_s += rng.expovariate(1.5)
            asked += 1
            prompt = [rng.randrange(100) for _ in range(rng.randint(200, 6_000))]
            sampling = Sampling(max_tokens=rng.randint(20, 300), ignore_eos=True)
            generation = Generation(
                str(asked), prompt, sampling, language, context_tokens=9_000, notify=lambda: None
            )
            running[generation.id] = generation
            engine.submit(generation.request(namer), now_s)
        for progress in engine.advance(now_s):
            generation = running[str(progress.id)]
            metrics.observe_progress(generation, progress)
            generation.advance(progress)
            if generation.finished:
                del running[generation.id]
        engine.take_cache_events()
        metrics.observe_steps(engine.take_step_sums())
        model.observe(meter.take(read_load(metrics.text().decode(), cache, None), now_s))
        now_s += 0.05
    assert model.curve is not None
    base_ms, prefill_ms, request_ms, kv_ms = model.curve
    decode_ms = base_ms + 20 * (request_ms + 3_000 * kv_ms)
    assert decode_ms == pytest.approx(H100.cost.step_ms(0, 0, 20, 60_000), rel=0.2)
    assert prefill_ms == pytest.approx(H100.cost.prefill_token_ms, rel=0.2)
