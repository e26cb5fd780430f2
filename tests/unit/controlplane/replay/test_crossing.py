"""Where speculation stops helping: the search, a small sweep, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli.speculation import main
from controlplane.replay.crossing import Sweep, crossing, lines, sweep
from controlplane.replay.report import Targets
from workers.sim.timing import H100


def test_the_crossing_is_between_two_measured_batches() -> None:
    assert crossing([1, 10, 20], [1.5, 1.1, 0.9]) == pytest.approx(15)
    assert crossing([1, 10], [1.5, 1.2]) is None
    assert crossing([1, 10], [0.9, 0.8]) == 1
    assert crossing([], []) is None


def test_poor_drafts_help_an_idle_engine_and_hurt_a_busy_one() -> None:
    of = Sweep(H100, (0.4, 0.8), (0.1, 2.0), 5, 0.08, 120, Targets(5_000, 100))
    points = sweep(of, lambda number, ended: None)
    poor, rich = lines(of, points)
    assert poor.batches == rich.batches == sorted(poor.batches)
    assert poor.speedups[0] > 1 > poor.speedups[1]
    assert poor.crossing is not None
    assert poor.batches[0] < poor.crossing < poor.batches[1]
    assert min(rich.speedups) > 2
    assert rich.crossing is None
    # Verifications stand between a prompt and its first token: drafts always cost there.
    assert all(ratio > 1 for ratio in (*poor.ttft_ratios, *rich.ttft_ratios))
    lengths = {p.acceptance: p.accept_length for p in points}
    assert lengths[None] == 1
    assert lengths[0.4] == pytest.approx(1.66, abs=0.02)


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "out.png"
    words = ["--acceptance", "0.4", "--loads", "0.1,0.3", "--requests", "30"]
    assert main([*words, "--json", str(out), "--plot", str(plot)]) == 0
    said = json.loads(out.read_text())
    assert len(said["points"]) == 4
    assert said["lines"][0]["expected"] == pytest.approx(1.1856)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "hurts from" in capsys.readouterr().out


def test_what_has_no_capacity_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tpot-target-ms", "20", "--requests", "10"]) == 1
    assert "has no capacity" in capsys.readouterr().err
