"""Curves learned from step sums: what comes out is what the engine's timing put in."""

from __future__ import annotations

import random

import pytest

from controlplane.capacity import SAMPLES_MIN, Capacities, CapacityModel, Curve, class_of
from proto.ids import WorkerId
from proto.load import StepSums
from proto.workers import Hardware, WorkerRecord, WorkerState
from workers.sim.timing import A100, H100, Profile, attention_pairs

CURVE = Curve(30.0, 0.05, 0.2, 2e-4)


def interval(curve: Curve, rng: random.Random, *, noise: float = 0.0) -> StepSums:
    """A quarter of a second or so of some engine: a few steps with prompts, a few without."""
    steps = rng.randint(2, 8)
    prefill = rng.choice([0, 0, rng.randint(50, 2_048 * steps)])
    batch = sum(rng.randint(0, 60) for _ in range(steps))
    kv_tokens = batch * rng.randint(500, 5_000)
    busy_ms = (
        curve.decode_base_ms * steps
        + curve.prefill_token_ms * prefill
        + curve.decode_request_ms * batch
        + curve.decode_kv_token_ms * kv_tokens
    ) * rng.lognormvariate(0, noise)
    share = rng.random()  # how an engine divides its time between the two must not matter
    return StepSums(steps, prefill, busy_ms * share, batch, kv_tokens, busy_ms * (1 - share))


def learned(curve: Curve, *, noise: float, samples: int = 400) -> Curve:
    rng, model = random.Random(1), CapacityModel()
    for _ in range(samples):
        model.observe(interval(curve, rng, noise=noise))
    assert model.curve is not None
    return model.curve


def test_what_is_exact_is_found_exactly() -> None:
    assert learned(CURVE, noise=0.0) == pytest.approx(CURVE, rel=1e-4)


def test_noise_blurs_it_and_no_more() -> None:
    found = learned(CURVE, noise=0.1, samples=2_000)
    assert found[:2] == pytest.approx(CURVE[:2], rel=0.05)
    assert found[2:] == pytest.approx(CURVE[2:], rel=0.3)


@pytest.mark.parametrize("profile", [H100, A100])
def test_a_simulated_engine_is_predicted_within_a_tenth(profile: Profile) -> None:
    """Its timing has a knee, a floor and attention, which four coefficients cannot say."""
    rng, model = random.Random(2), CapacityModel()

    def work() -> tuple[StepSums, float]:
        prefill = rng.choice([0, rng.randint(500, 2_048)])
        batch, context = rng.randint(1, 60), rng.randint(500, 8_000)
        pairs = attention_pairs(prefill, rng.randint(0, 8_000))
        took_ms = profile.cost.step_ms(prefill, pairs, batch, batch * context)
        return StepSums(1, prefill, 0.0, batch, batch * context, took_ms), took_ms

    for _ in range(1_000):
        model.observe(work()[0])
    assert model.curve is not None
    base, token, request, kv_token = model.curve
    errors = []
    for _ in range(300):
        did, took_ms = work()
        predicted_ms = base + token * did.prefill_tokens + request * did.decode_batch
        predicted_ms += kv_token * did.decode_kv_tokens
        errors.append(abs(predicted_ms / took_ms - 1))
    assert sorted(errors)[len(errors) // 2] < 0.1


def test_it_says_nothing_before_it_has_seen_both_phases() -> None:
    model, rng = CapacityModel(), random.Random(3)
    for _ in range(5 * SAMPLES_MIN):
        model.observe(StepSums(4, 0, 0.0, rng.randint(1, 40), rng.randint(100, 9_000), 130.0))
    assert model.curve is None
    for _ in range(SAMPLES_MIN):
        model.observe(StepSums(1, 2_048, 130.0, 0, 0, 0.0))
    assert model.curve is not None


def test_intervals_without_steps_teach_nothing() -> None:
    model = CapacityModel()
    for _ in range(100):
        assert not model.observe(StepSums())
    assert model.curve is None


@pytest.mark.parametrize("busy_ms", [1e-300, 0.001])
def test_a_time_that_no_engine_can_have_teaches_nothing(busy_ms: float) -> None:
    rng, model, other = random.Random(5), CapacityModel(), CapacityModel()
    for number in range(100):
        told = interval(CURVE, rng)
        model.observe(told)
        other.observe(told)
        if number == 50:
            assert not other.observe(StepSums(1, 100, busy_ms, 1, 1_000, 0.0))
    assert model.curve is not None
    assert other.curve == model.curve


def test_no_coefficient_is_ever_negative() -> None:
    """Here more sequences went with shorter steps: noise, and not a reward for load."""
    model = CapacityModel()
    for batch in range(1, 60):
        model.observe(StepSums(1, 100, 10.0, batch, 0, 80.0 - batch))
    assert model.curve is not None
    assert min(model.curve) >= 0


def test_an_engine_that_has_become_slower_is_followed() -> None:
    rng, model = random.Random(4), CapacityModel()
    slower = Curve(*(2 * value for value in CURVE))
    for curve, samples in ((CURVE, 2_000), (slower, 20_000)):
        for _ in range(samples):
            model.observe(interval(curve, rng))
    assert model.curve == pytest.approx(slower, rel=0.05)


def record(**other: object) -> WorkerRecord:
    return WorkerRecord(
        worker=WorkerId("w"), incarnation=1, model="m", engine="vllm", engine_version="1",
        url="http://w", state=WorkerState.READY, block_tokens=16, total_blocks=100,
        hardware=Hardware(profile="h100"),
    ).model_copy(update=other)  # fmt: skip


def test_hw5_a_new_engine_version_starts_from_nothing() -> None:
    capacities, rng = Capacities(), random.Random(5)
    for _ in range(100):
        capacities.observe(record(), interval(CURVE, rng))
    assert capacities.version > 0
    assert capacities.curve(record(worker=WorkerId("another"))) is not None
    assert capacities.curve(record(engine_version="2")) is None
    assert class_of(record()) != class_of(record(hardware=Hardware(profile="a100")))
