from __future__ import annotations

import numpy as np
import pytest

from controlplane.replay.capacity import engine_rate, fleet_rate, ideal_cached_tokens
from controlplane.replay.trace import TraceRequest
from proto.hashing import Words
from tests.unit.controlplane.replay.test_simulate import scenario
from workers.sim.timing import A100, H100, LAPTOP

ALIKE = [TraceRequest(float(i), 2_000, 100, (0, 1, 2, 3)) for i in range(10)]
NOTHING = [0] * len(ALIKE)


def test_at_full_load_a_step_takes_as_long_as_the_target() -> None:
    rate = engine_rate(ALIKE, NOTHING, H100, 100.0)
    # In each tenth of a second so many prompts begin and so many answers are being written:
    prompts, sequences = rate * 0.1, rate * 99 * 0.1
    cost = H100.cost
    step_ms = (
        cost.decode_base_ms
        + prompts * (cost.prefill_token_ms * 2_000 + cost.attention_pair_ms * 2_000 * 2_001 / 2)
        + sequences * (cost.decode_sequence_ms + cost.decode_kv_token_ms * 2_049.5)
    )
    assert step_ms == pytest.approx(100.0)


def test_hits_and_quicker_engines_carry_more() -> None:
    cached = ideal_cached_tokens(scenario(ALIKE).names, 64)
    assert cached == [0] + [31 * 64] * 9
    assert engine_rate(ALIKE, cached, H100, 100.0) > engine_rate(ALIKE, NOTHING, H100, 100.0)
    assert engine_rate(ALIKE, NOTHING, A100, 100.0) < engine_rate(ALIKE, NOTHING, H100, 100.0)


def test_a_fleet_carries_what_its_engines_carry() -> None:
    each = [engine_rate(ALIKE, NOTHING, profile, 100.0) for profile in (H100, A100, A100)]
    fleet = [H100, A100, A100]
    assert fleet_rate(ALIKE, NOTHING, fleet, 100.0) == pytest.approx(sum(each))


def test_who_cannot_keep_the_target_at_all_has_no_capacity() -> None:
    with pytest.raises(ValueError, match="a step of laptop takes 5 ms"):
        engine_rate(ALIKE, NOTHING, LAPTOP, 5.0)


def test_ideal_hits_are_leading_blocks_of_any_earlier_prompt() -> None:
    prompts: list[Words] = [np.array(p, dtype=np.uint64) for p in ([1, 2], [1, 3], [4], [1, 2, 5])]
    assert ideal_cached_tokens(prompts, 16) == [0, 16, 0, 32]
