"""Hardware that nobody measured: how its profile follows from one that was."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.sim import fit
from workers.sim.chips import BadChips, Chip, read_chips
from workers.sim.roofline import REALISED, profile_of, scaled
from workers.sim.timing import A100, H100, LAPTOP

CHIPS = {
    "h100": Chip(80, 3350, 989),
    "a100": Chip(80, 2039, 312),
    "h200": Chip(141, 4800, 989),
}


def test_measured_hardware_keeps_what_was_measured() -> None:
    assert profile_of("h100", CHIPS) is profile_of(H100.name, {}) is H100
    assert profile_of("a100", CHIPS) is A100
    assert profile_of("laptop", {}) is LAPTOP


def test_more_bandwidth_speeds_decoding_and_more_memory_holds_more() -> None:
    h200 = profile_of("h200", CHIPS)
    assert h200.name == "h200-llama2-70b-tp8"
    assert profile_of(h200.name, CHIPS) == h200
    faster = (4800 / 3350) ** REALISED
    assert h200.cost.decode_base_ms == pytest.approx(H100.cost.decode_base_ms / faster)
    assert h200.cost.prefill_token_ms == H100.cost.prefill_token_ms  # the same arithmetic
    assert h200.cost.decode_sequence_ms == H100.cost.decode_sequence_ms
    more_bytes = (141 - 80) * 1e9 * 0.9 * 8
    more_tokens = h200.kv_capacity_tokens - H100.kv_capacity_tokens
    assert more_tokens == pytest.approx(more_bytes / 327_680, abs=1)


def test_who_is_not_there_is_told_who_is() -> None:
    with pytest.raises(ValueError, match=r"no profile 'abacus'; there are: h100-.*, h200"):
        profile_of("abacus", CHIPS)


@pytest.mark.data
@pytest.mark.parametrize(
    ("model", "prompt_median", "decode_median"),
    [("llama2-70b", 0.115, 0.028), ("bloom-176b", 0.060, 0.057)],
)
def test_the_rule_predicts_the_a100_as_well_as_the_docs_say(
    model: str, prompt_median: float, decode_median: float, shared_data: Path
) -> None:
    path = shared_data / "engine_timings_splitwise.csv.gz"
    cost, *_ = fit.fit(fit.load(path, model, "h100-80gb", 8))
    predicted = scaled(cost, CHIPS["h100"], CHIPS["a100"])
    prompt, decode = fit.errors(predicted, fit.load(path, model, "a100-80gb", 8))
    assert prompt.median == pytest.approx(prompt_median, abs=0.001)
    assert decode.median == pytest.approx(decode_median, abs=0.001)


def test_chips_are_read_and_later_files_change_them(tmp_path: Path) -> None:
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    first.write_text(
        "[x]\nmemory_gb = 80\nbandwidth_gb_s = 2000\ndense_tflops = 300\nprice_per_hour = 1\n"
    )
    second.write_text("[x]\nmemory_gb = 96\n")
    assert read_chips([first, second]) == {"x": Chip(96, 2000, 300)}
    assert read_chips([]) == {}


@pytest.mark.parametrize("text", ["[x", "x = 1", "[x]\nmemory_gb = 1", "[x]\nmemory_gb = 'a'"])
def test_a_bad_file_of_chips_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(BadChips):
        read_chips([path])
