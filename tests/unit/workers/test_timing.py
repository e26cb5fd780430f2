"""Step costs: their shape, and how far the fitted profiles are from what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.sim import fit
from workers.sim.timing import (
    A100,
    H100,
    LAPTOP,
    LLAMA2_70B_KV_TOKEN_BYTES,
    PROFILES,
    Profile,
    attention_pairs,
    kv_capacity_tokens,
)

TOKENS = st.integers(0, 40_000)
FITTED = [(H100, "h100-80gb"), (A100, "a100-80gb")]


@settings(deadline=None)
@given(
    st.sampled_from(list(PROFILES.values())),
    st.tuples(TOKENS, TOKENS, TOKENS, TOKENS),
    st.tuples(TOKENS, TOKENS, TOKENS, TOKENS),
)
def test_more_work_never_takes_less_time(
    profile: Profile, work: tuple[int, int, int, int], more: tuple[int, int, int, int]
) -> None:
    both = [a + b for a, b in zip(work, more, strict=True)]
    assert 0 < profile.cost.step_ms(*work) <= profile.cost.step_ms(*both)


@settings(deadline=None)
@given(st.integers(1, 5_000), st.integers(1, 5_000), st.integers(0, 5_000))
def test_chunks_of_a_prompt_attend_to_as_many_pairs_as_the_whole(
    first: int, second: int, computed: int
) -> None:
    whole = attention_pairs(first + second, computed)
    chunked = attention_pairs(first, computed) + attention_pairs(second, computed + first)
    assert whole == chunked


def test_a_mixed_step_reads_the_weights_once() -> None:
    cost = H100.cost
    apart = cost.step_ms(1024, 0, 0, 0) + cost.step_ms(0, 0, 32, 32_000)
    assert cost.step_ms(1024, 0, 32, 32_000) == pytest.approx(apart - cost.decode_base_ms)


def test_kv_capacity_is_what_the_weights_leave() -> None:
    assert kv_capacity_tokens(100.0, 2, 80.0, 10) == 10
    assert LLAMA2_70B_KV_TOKEN_BYTES == 320 * 1024
    assert H100.kv_capacity_tokens == int((80e9 * 0.9 * 8 - 138e9) // 327_680)
    assert H100.kv_capacity_blocks(64) == H100.kv_capacity_tokens // 64


def test_the_laptop_is_as_quick_as_it_says() -> None:
    assert LAPTOP.cost.step_ms(1000, 0, 0, 0) == pytest.approx(100, rel=0.01)
    assert LAPTOP.cost.step_ms(0, 0, 1, 100) == pytest.approx(5, abs=0.1)
    assert LAPTOP.cost.step_ms(0, 0, 64, 60_000) < 10


@pytest.mark.data
@pytest.mark.parametrize(("profile", "hardware"), FITTED, ids=lambda value: str(value)[:9])
def test_profiles_are_what_the_fit_says(profile: Profile, hardware: str, shared_data: Path) -> None:
    rows = fit.load(shared_data / "engine_timings_splitwise.csv.gz", "llama2-70b", hardware, 8)
    cost, *_ = fit.fit(rows)
    assert vars(profile.cost) == pytest.approx(vars(cost), rel=1e-3)


@pytest.mark.data
def test_errors_of_the_fit_are_as_documented(shared_data: Path) -> None:
    documented = {
        "h100-80gb": (0.033, 0.144, 0.016, 0.053),
        "a100-80gb": (0.019, 0.182, 0.011, 0.049),
    }
    for profile, hardware in FITTED:
        rows = fit.load(shared_data / "engine_timings_splitwise.csv.gz", "llama2-70b", hardware, 8)
        prefill, decode = fit.errors(profile.cost, rows)
        found = (prefill.median, prefill.p95, decode.median, decode.p95)
        assert found == pytest.approx(documented[hardware], abs=0.001)


@pytest.mark.data
def test_fit_refuses_what_it_has_no_rows_for(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows of gpt"):
        fit.load(shared_data / "engine_timings_splitwise.csv.gz", "gpt", "h100-80gb", 8)
    assert fit.main([str(tmp_path / "missing.csv")]) == 1
