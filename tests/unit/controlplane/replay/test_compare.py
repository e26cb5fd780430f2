"""The same trace on other hardware: the search, the figures, and the command."""

from __future__ import annotations

import json
import random
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cli.compare import main
from controlplane.replay.compare import Question, compare, fewest
from controlplane.replay.generate import Workload, generate, write
from controlplane.replay.hardware import dollars_per_hour, timing, timings
from controlplane.replay.names import PromptNamer
from controlplane.replay.report import Targets
from proto.hardware import load_catalogue
from proto.hashing import BlockHasher, Scope

CATALOGUE = load_catalogue()
WORKLOAD = Workload(conversations=300, rate=20.0, turns=1.0, message_tokens=3_000.0)


def question(hold: float = 0.95, tpot_ms: float = 60.0) -> Question:
    requests = list(islice(generate(WORKLOAD, random.Random(1)), 150))
    namer = PromptNamer(BlockHasher(b"test", Scope("m"), 64))
    return Question(
        requests=requests,
        names=list(namer.names(requests)),
        block_tokens=64,
        targets=Targets(3_000.0, tpot_ms),
        workers=3,
        hold=hold,
        policy="kv",
        catalogue=CATALOGUE,
    )


@given(st.integers(1, 300), st.integers(1, 256), st.integers(1, 256))
def test_the_fewest_are_found_from_any_guess(least: int, guess: int, most: int) -> None:
    asked: list[int] = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= least

    found = fewest(holds, min(guess, most), most)
    assert found == (least if least <= most else None)
    assert all(1 <= count <= most for count in asked)


def test_faster_hardware_needs_fewer_workers_and_slower_hardware_is_not_forgotten() -> None:
    fleet = timings(["a100", "h100", "b200"], CATALOGUE)
    a100, h100, b200 = compare(question(), fleet, lambda number, ended: None)
    assert a100.capacity < h100.capacity < b200.capacity
    assert a100.equal_fleet.workers == h100.equal_fleet.workers == 3
    assert a100.equal_fleet.results.goodput <= b200.equal_fleet.results.goodput
    assert a100.equal_slo is not None
    assert h100.equal_slo is not None
    assert b200.equal_slo is not None
    assert a100.equal_slo.workers > h100.equal_slo.workers > b200.equal_slo.workers
    for answer in (a100, h100, b200):
        assert answer.equal_slo is not None
        assert answer.equal_slo.results.goodput >= 0.95
    assert (a100.derived, h100.derived, b200.derived) == (False, False, True)


def test_what_it_costs_is_what_was_held_by_its_price() -> None:
    [h100] = compare(question(), timings(["h100"], CATALOGUE), lambda number, ended: None)
    fleet = h100.equal_fleet
    assert fleet.accelerators == 24
    assert fleet.dollars_per_hour == pytest.approx(24 * 3.00)
    held_s = fleet.results.accelerator_seconds
    assert held_s is not None
    output_tokens = sum(request.output_tokens for request in question().requests)
    assert fleet.results.cost_per_1k_tokens == pytest.approx(
        held_s / 3600 * 3.00 / output_tokens * 1000
    )
    assert dollars_per_hour([timing("laptop", CATALOGUE)], CATALOGUE) is None


def test_what_no_fleet_can_keep_is_not_searched_for() -> None:
    replayed: dict[int, int] = {}
    fleet = timings(["a100"], CATALOGUE)
    [too_slow] = compare(question(tpot_ms=40.0), fleet, replayed.__setitem__)
    assert (too_slow.capacity, too_slow.reachable, too_slow.equal_slo) == (0.0, 0.0, None)
    assert replayed == {0: 150}  # the equal fleet only


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, out, plot = tmp_path / "t.jsonl", tmp_path / "out.json", tmp_path / "out.png"
    write(islice(generate(WORKLOAD, random.Random(1)), 40), trace)
    words = ["--profiles", "h100,h200", "--workers", "2", str(trace)]
    assert main([*words, "--json", str(out), "--plot", str(plot)]) == 0
    said = json.loads(out.read_text())
    assert [answer["profile"] for answer in said["profiles"]] == [
        "h100-llama2-70b-tp8",
        "h200-llama2-70b-tp8",
    ]
    assert said["profiles"][1]["equal_fleet"]["dollars_per_hour"] == 64.0
    assert said["settings"]["workers"] == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr()
    assert "h200*" in told.out
    assert "nobody measured it" in told.err


def test_hardware_that_there_is_not_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--profiles", "abacus", str(tmp_path / "t.jsonl")]) == 2
    assert "there is no profile 'abacus'" in capsys.readouterr().err
