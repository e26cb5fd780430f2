"""`slo`: whose latency a request costs what, and which promises are kept."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.capacity import Curve
from controlplane.router.policies.base import Floats, Prompt, State, Weighed
from controlplane.router.policies.kv import kv
from controlplane.router.policies.slo import good, slo
from controlplane.router.settings import RouterSettings
from tests.unit.controlplane.router.policies.tables import CURVE, Row, table

PROMPT = Prompt(tokens=3_200, expected_output_tokens=200)


def costs(*rows: Row, prompt: Prompt = PROMPT, **settings: float) -> Floats:
    knobs = RouterSettings.model_validate(settings).knobs
    return slo(prompt, table(*rows), State(random.Random(0), knobs)).costs


def best(*rows: Row, prompt: Prompt = PROMPT, **settings: float) -> str:
    return rows[int(costs(*rows, prompt=prompt, **settings).argmin())].name


def test_alone_on_an_idle_worker_it_costs_its_own_latency() -> None:
    """3,200 tokens at 0.05 ms in 2,048 a step of 30 ms; then 200 tokens at the pace it will have,
    with 320 tokens a second of prompts in the window of ten seconds."""
    ttft_ms = 3_200 * 0.05 + 3_200 / 2_048 * 30.0
    pace_ms = (30.0 + 0.2 + 2e-4 * 3_300) / (1 - 320 * 0.05 / 1000)
    [cost] = costs(Row("a"), slo_broken_ms=0)
    assert cost == pytest.approx(ttft_ms + pace_ms * 200)


def test_streams_stand_still_behind_the_prompt_and_are_slower_afterwards() -> None:
    [alone] = costs(Row("a"), slo_broken_ms=0)
    [crowded] = costs(Row("a", requests=10), slo_broken_ms=0)
    stall_ms = 10 * 3_200 * 0.05
    slower_ms = 10 * (0.2 + 2e-4 * 3_300) * 200 * 0.5
    own_ms = 10 * 0.2 * (3_200 / 2_048 + 200 / (1 - 320 * 0.05 / 1000))
    assert crowded - alone == pytest.approx(stall_ms + slower_ms + own_ms)


def test_kr7_a_warm_worker_wins_until_it_is_too_busy() -> None:
    warm, cold = Row("warm", overlap=190, requests=5), Row("cold", requests=5)
    assert best(warm, cold) == "warm"
    assert best(warm._replace(queued=2_000), cold) == "cold"


def test_a_promise_that_is_kept_is_not_broken_for_a_little_latency() -> None:
    """Few streams, and 97 ms a token because of the prompts between them, against more streams
    at 76 ms: ours would add less to the latency of the few, and cost them their promise."""
    edge = Row("edge", requests=12, decode=2_000, rate=12_000.0)
    calm = Row("calm", requests=40, decode=12_000)
    assert best(edge, calm, slo_broken_ms=0) == "edge"
    assert best(edge, calm, slo_broken_ms=30_000) == "calm"


LOST = Row("lost", requests=60, decode=20_000, rate=6_000.0)
"""151 ms a token."""
EDGE = Row("edge", requests=60, decode=12_000, rate=3_400.0)
"""97 ms a token."""


def test_under_overload_the_lost_worker_takes_what_nobody_could_serve() -> None:
    assert best(LOST, EDGE, slo_broken_ms=0) == "edge"
    assert best(LOST, EDGE, slo_broken_ms=30_000) == "lost"


def test_no_worker_is_given_everything_however_lost_it_is() -> None:
    assert best(LOST._replace(queued=120_000), EDGE, slo_broken_ms=30_000) == "edge"


def test_an_answer_that_has_just_begun_is_not_stopped_where_equals_are() -> None:
    """The first was given a prompt half a second ago, the second two. Who answers nobody, or would
    be stopped for a moment only, has none to spare."""

    def apart(prompt: Prompt, *rows: Row) -> float:
        candidates = replace(table(*rows), rested_s=np.array([0.5, 2.0]))
        just, before = slo(prompt, candidates, State(random.Random(0), RouterSettings().knobs))[0]
        return float(just - before)

    long, short = of_length(20_000), of_length(200)
    a, b = Row("just", requests=5), Row("before", requests=5)
    assert apart(long, a, b) > 20 * apart(short, a, b) > 0
    assert apart(long, Row("just"), Row("before")) == 0


def of_length(tokens: int) -> Prompt:
    return Prompt(tokens=tokens, expected_output_tokens=200)


def test_hw7_a_slow_class_gets_what_it_can_carry() -> None:
    slow = Curve(44.0, 0.12, 0.2, 3e-4)
    fast = [Row("fast", requests=n) for n in (0, 14)]
    assert best(fast[0], Row("slow", curve=slow)) == "fast"
    assert best(fast[1], Row("slow", curve=slow)) == "slow"


def test_before_anything_is_learned_it_is_kv() -> None:
    rows = [Row("a", overlap=7, curve=None), Row("b", queued=3, requests=2, curve=None)]
    state = State(random.Random(0), RouterSettings().knobs)
    assert (
        slo(PROMPT, table(*rows), state).costs.tolist() == kv(PROMPT, table(*rows), state).tolist()
    )


def test_a_class_not_known_yet_is_taken_to_be_like_the_others() -> None:
    known, new = costs(Row("known"), Row("new", curve=None))
    assert known == new


def test_a_prompt_computed_whole_from_cache_still_takes_a_step() -> None:
    [cost] = costs(Row("a", overlap=200), slo_broken_ms=0)
    assert cost > CURVE.decode_base_ms


COLUMNS = st.tuples(
    st.integers(0, 500),
    st.integers(0, 10_000),
    st.integers(0, 50_000),
    st.integers(0, 256),
    st.floats(0, 100_000),
)


@given(st.lists(COLUMNS, min_size=1, max_size=6), st.integers(1, 100_000))
def test_whatever_the_load_every_cost_is_a_number(
    rows: list[tuple[int, int, int, int, float]], tokens: int
) -> None:
    found = costs(*(Row("w", *columns) for columns in rows), prompt=Prompt(tokens, 100))
    assert np.isfinite(found).all() and (found > 0).all()


def test_good_is_a_chance_that_falls_with_the_latency() -> None:
    chances = good(np.array([0.0, 0.9, 1.0, 1.1, 1e7]))
    assert chances.tolist() == sorted(chances, reverse=True)
    assert chances[2] == 0.5 and chances[0] > 0.99 and chances[-1] < 0.01


def test_sd9_a_speculating_worker_keeps_a_faster_pace() -> None:
    """The same steps, and three tokens from each where the engine speculates."""
    candidates = table(Row("plain", requests=20), Row("drafts", requests=20))
    drafting = replace(candidates, accept_length=np.array([1.0, 3.0]))
    weighed = slo(PROMPT, drafting, State(random.Random(0), RouterSettings().knobs))
    assert isinstance(weighed, Weighed)
    plain_ms, drafts_ms = weighed.values["tpot_ms"]
    assert plain_ms == pytest.approx(3 * drafts_ms)
    assert weighed.values["ttft_ms"][0] == weighed.values["ttft_ms"][1]
    assert weighed.costs[1] < weighed.costs[0]
