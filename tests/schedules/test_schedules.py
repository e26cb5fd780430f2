"""Ten thousand histories of the pure cores, and some thousands of bad inputs; `make chaos` and
`make fuzz` play a million of each."""

from __future__ import annotations

import pytest

from controlplane.router.ingest import Lane
from tests.schedules.player import INPUTS, play_piece, told, turns

SHARDS = 10
HISTORIES = 10_000
EACH = HISTORIES // SHARDS


@pytest.mark.parametrize("first", range(0, HISTORIES, EACH))
def test_whatever_the_schedule_what_must_hold_holds(first: int) -> None:
    failure = play_piece(turns("cores"), first, EACH)
    assert failure is None, failure and failure.text


@pytest.mark.parametrize("world", sorted(INPUTS))
def test_whatever_comes_in_nothing_falls_over(world: str) -> None:
    failure = play_piece([world], 0, 500)
    assert failure is None, failure and failure.text


def test_a_bug_is_found_and_its_history_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a simulation cannot find it does not keep out: reports here prove nothing to a lane."""
    monkeypatch.setattr(Lane, "check", lambda *_: ())
    failure = play_piece(["index"], 0, 1_000)
    assert failure is not None
    assert "lost:" in failure.text and "wrong for good" in failure.text
    assert failure.text.endswith(f"--world index --seed {failure.seed}\n")
    assert told("index", failure.seed) == failure.text
