"""The catalogue: what is built in, what a user's file changes, and how profiles find it."""

from __future__ import annotations

from pathlib import Path

import pytest

from proto.hardware import BadHardware, load_catalogue


def test_the_articles_five_are_built_in() -> None:
    catalogue = load_catalogue()
    assert list(catalogue) == ["a100", "h100", "h200", "b200", "gb200"]
    h200 = catalogue["h200"]
    assert (h200.memory_gb, h200.bandwidth_gb_s) == (141, 4800)  # HW2
    assert catalogue["gb200"].nvlink_accelerators == 72
    assert "fp8" in catalogue["h100"].precisions
    assert "fp8" not in catalogue["a100"].precisions
    assert all(each.price_per_hour for each in catalogue.values())


def test_a_profile_names_an_accelerator_and_more() -> None:
    catalogue = load_catalogue()
    for profile, name in (("h100", "h100"), ("h100-sxm", "h100"), ("gb200-llama2-70b", "gb200")):
        assert catalogue.of(profile) is catalogue[name]
    assert catalogue.of("unknown") is None
    assert catalogue.of("h1000") is None


def test_a_users_file_changes_what_it_names_and_adds(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        "[h100]\nprice_per_hour = 9\n"
        "[h100-pcie]\nmemory_gb = 80\nbandwidth_gb_s = 2000\ndense_tflops = 756\n"
    )
    catalogue = load_catalogue(own)
    assert catalogue["h100"].price_per_hour == 9
    assert catalogue["h100"].memory_gb == 80
    pcie = catalogue.of("h100-pcie-tp2")
    assert pcie is catalogue["h100-pcie"]
    assert pcie.price_per_hour is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("h100 = 3", "h100 is not a table"),
        ("[h100", "is not TOML"),
        ("[new]\nmemory_gb = 1", "bandwidth_gb_s: Field required"),
        ("[h100]\nprice = 3", "price: Extra inputs"),
    ],
)
def test_a_bad_file_is_refused_by_its_name(tmp_path: Path, text: str, why: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(BadHardware, match=why) as raised:
        load_catalogue(own)
    assert str(own) in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadHardware, match=r"cannot read .*nowhere\.toml"):
        load_catalogue(tmp_path / "nowhere.toml")
