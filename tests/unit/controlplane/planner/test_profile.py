"""A profile of an engine is what a planner begins with."""

from __future__ import annotations

import msgspec
import pytest

from controlplane.capacity import Capacities, WorkerClass, class_of
from controlplane.planner.profile import AnswerSample, ProfileUnusable, PromptSample, fit, read
from tests.unit.controlplane.planner.scenes import CURVE, worker

BUDGET = 2_048


def test_as16_what_was_measured_is_where_a_planner_begins() -> None:
    prompts = [
        PromptSample(n, CURVE.decode_base_ms * -(-n // BUDGET) + CURVE.prefill_token_ms * n)
        for n in (64, 512, 2_048, 8_192)
    ]
    answers = [
        AnswerSample(
            batch,
            context,
            64,
            CURVE.decode_base_ms
            + batch * (CURVE.decode_request_ms + CURVE.decode_kv_token_ms * context),
        )
        for batch in (1, 8, 32)
        for context in (256, 4_096)
    ]
    record = worker("w0")
    data = msgspec.json.encode(fit(class_of(record), prompts, answers, BUDGET))
    capacities = Capacities()
    capacities.restore(read(data))
    curve = capacities.curve(record)
    assert curve is not None and list(curve) == pytest.approx(list(CURVE), rel=0.01)
    assert capacities.curve(worker("w1", version="2")) is None, "of another version (HW5)"


def test_what_is_no_profile_is_refused() -> None:
    with pytest.raises(ProfileUnusable, match="not a capacity profile"):
        read(b"{}")
    with pytest.raises(ValueError, match="both"):
        fit(WorkerClass("h", 1, "sim", "1", "m"), [], [], BUDGET)
