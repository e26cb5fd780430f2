from __future__ import annotations

import pytest

from bench.rows import Bar, Row, bar_of, row


def test_a_ratio_is_ours_divided_by_the_peers() -> None:
    assert row("case", "us", 30.0, 120.0) == Row("case", 30.0, 120.0, 0.25, "us")


def test_without_a_peer_there_is_no_ratio() -> None:
    assert row("case", "us", 30.0) == Row("case", 30.0, None, None, "us")


def test_figures_are_rounded_to_four_digits() -> None:
    assert row("case", "blocks/s", 1_234_567.8, 2.0) == Row(
        "case", 1_235_000.0, 2.0, 617_300.0, "blocks/s"
    )


@pytest.mark.parametrize(
    ("bar", "ours", "peer", "met"),
    [
        (Bar("*", "ratio", "at most", 0.25), 1.0, 4.0, True),
        (Bar("*", "ratio", "at most", 0.25), 1.1, 4.0, False),
        (Bar("*", "ratio", "at least", 2.0), 8.0, 4.0, True),
        (Bar("*", "ratio", "at least", 2.0), 7.0, 4.0, False),
        (Bar("*", "ours", "at most", 120.0), 119.0, 1.0, True),
        (Bar("*", "ours", "at most", 120.0), 121.0, None, False),
        (Bar("*", "ratio", "at most", 0.25), 1.0, None, None),
    ],
)
def test_a_bar_holds_a_ratio_or_a_figure(
    bar: Bar, ours: float, peer: float | None, met: bool | None
) -> None:
    assert bar.met(row("case", "us", ours, peer)) is met


def test_the_first_bar_that_speaks_of_a_case_counts() -> None:
    bars = (Bar("1,024 blocks, * workers, miss", "ratio", "at most", 0.1),)
    assert bar_of(row("1,024 blocks, 512 workers, miss", "us", 1.0), bars) == bars[0]
    assert bar_of(row("1,024 blocks, 512 workers, one depth", "us", 1.0), bars) is None
