from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.cli.replay import main
from controlplane.replay.cells import Cell, Course
from controlplane.replay.ladder import (
    BLIND,
    KV_BEST,
    KV_WEIGHTS,
    SUBJECT,
    Score,
    Verdict,
    climb,
    plan,
    verdicts,
    with_best,
)
from controlplane.replay.ladder_plot import save
from controlplane.replay.ladder_report import LadderReport, summary, tables
from controlplane.replay.report import Distribution, PolicyReport, Targets

LATE = f"{SUBJECT}:kv_delay_s=1"
SETTINGS = {"ttft_target_ms": 5000.0, "tpot_target_ms": 100.0, "workers": 8, "requests": 100}


def score(arm: str, goodput: float, trace: str = "no reuse", load: float = 0.8) -> Score:
    figures = PolicyReport(
        completed=97,
        rejected=2,
        failed=1,
        ttft_ms=Distribution(700.0, 600.0, 900.0, 2_340.0),
        tpot_ms=Distribution(50.0, 47.0, 60.0, 70.0),
        hit_rate=0.0,
        ideal_hit_rate=0.0,
        goodput=goodput,
        busy=0.9,
    )
    return Score(trace, load, arm, figures)


def a_cell(
    subject: float, blind: float = 0.5, best: float = 0.8, oracle: float = 1.0
) -> list[Score]:
    weights = [score(name, best - 0.01 * nth) for nth, name in enumerate(reversed(KV_WEIGHTS))]
    others = [score(BLIND, blind), score("lmetric", 0.6), score(LATE, 0.95)]
    return [*others, *reversed(weights), score(SUBJECT, subject), score("oracle", oracle)]


def test_degraded_arms_run_at_some_loads_only_and_a_trace_is_run_in_one_go() -> None:
    runs = plan(["a", "b"], [0.5, 0.8], ["kv", LATE])
    assert runs == [
        (Cell("a", 0.5), "kv"),
        (Cell("a", 0.8), "kv"),
        (Cell("a", 0.8), LATE),
        (Cell("b", 0.5), "kv"),
        (Cell("b", 0.8), "kv"),
        (Cell("b", 0.8), LATE),
    ]


def test_climbing_gives_every_run_its_score_and_tells_how_far_it_is() -> None:
    course = Course(requests=40, workers=2, targets=Targets(5_000, 100))
    runs = plan(["no reuse", "sibling bursts"], [0.8], ["round_robin", "kv"])
    told: list[int] = []
    scores = climb(course, runs, told.append)
    assert [(s.trace, s.load, s.arm) for s in scores] == [(c.trace, c.load, a) for c, a in runs]
    assert all(s.figures.completed == 40 for s in scores)
    assert scores[2].figures.ideal_hit_rate > 0.5 > scores[0].figures.ideal_hit_rate == 0
    assert told == sorted(told)
    assert told[-1] == 160


def test_the_best_weight_is_picked_for_each_cell() -> None:
    scores = with_best([*a_cell(0.7), *(score(name, 0.3, load=1.2) for name in KV_WEIGHTS)])
    best = [(s.load, s.figures.goodput) for s in scores if s.arm == KV_BEST]
    assert best == [(0.8, 0.8), (1.2, 0.3)]
    assert scores[scores.index(score(KV_WEIGHTS[-1], 0.8)) + 1].arm == KV_BEST


def test_without_all_the_weights_none_is_best() -> None:
    assert KV_BEST not in {s.arm for s in with_best([score(KV_WEIGHTS[-1], 0.8)])}


@pytest.mark.parametrize(
    ("subject", "blind", "near", "above"),
    [(0.9, 0.5, True, True), (0.777, 0.5, True, True), (0.775, 0.5, False, True),
     (0.79, 0.795, True, False), (0.4, 0.5, False, False)],
)  # fmt: skip
def test_a_verdict_weighs_the_subject_against_what_a_router_could_be(
    subject: float, blind: float, near: bool, above: bool
) -> None:
    [verdict] = verdicts(with_best(a_cell(subject, blind)))
    assert (verdict.best_arm, verdict.best) == (KV_WEIGHTS[-1], 0.8)
    assert (verdict.near_best, verdict.above_blind) == (near, above)


def test_without_the_subject_there_is_no_verdict() -> None:
    assert verdicts([score(BLIND, 0.5), score("kv", 0.6)]) == []


def test_tables_print_losses_beside_latency_and_name_what_was_missed() -> None:
    scores = with_best([*a_cell(0.7, blind=0.75), score(SUBJECT, 1.0, load=1.2)])
    text = tables(LadderReport(SETTINGS, scores, verdicts(scores)))
    assert "| no reuse" in text
    assert "70.0%   0.60/2.3   47  2+1" in text
    assert "more than 3% below the best and below round robin" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows[:12]} == {len(rows[0])}
    assert "within 3% of the best arm in 1 of 2 cells" in summary(
        [Verdict("a", 0.5, 1.0, 1.0, "kv", 1.0), Verdict("a", 0.8, 0.5, 1.0, "kv", 0.4)]
    )


def test_a_run_that_served_nobody_has_dashes() -> None:
    nobody = PolicyReport(0, 9, 0, Distribution(), Distribution(), 0.0, 0.0, 0.0, 0.0)
    assert "-/-" in tables(LadderReport(SETTINGS, [Score("a", 0.5, "kv", nobody)], []))


def test_the_plot_is_drawn_though_some_cells_lack_some_arms(tmp_path: Path) -> None:
    path = tmp_path / "ladder.png"
    scores = [*a_cell(0.7), score(BLIND, 0.1, trace="sibling bursts", load=1.2)]
    save(path, LadderReport(SETTINGS, scores, []))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_command_writes_all_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, table, plot = (tmp_path / name for name in ("out.json", "out.md", "out.png"))
    words = ["--ladder", "--arms", "round_robin,kv", "--traces", "shared prefix", "--loads", "0.8"]
    files = ["--json", str(out), "--table", str(table), "--plot", str(plot)]
    assert main([*words, "--requests", "30", "--workers", "2", *files]) == 0
    said = json.loads(out.read_text())
    assert [s["arm"] for s in said["scores"]] == ["round_robin", "kv"]
    assert said["settings"]["requests"] == 30
    assert table.read_text().strip() == capsys.readouterr().out.strip()
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["--arms", "nonsense"], 2, "there is no policy 'nonsense'"),
        (["--loads", "0"], 2, "greater than 0"),
        (["--traces", "nonsense"], 1, "there is no trace 'nonsense'; there are: no reuse"),
        (["--tpot-target-ms", "20", "--arms", "kv"], 1, "so that it has no capacity"),
        (["no/such/trace.jsonl", "--traces", "recorded", "--arms", "kv"], 1, "cannot read"),
    ],
)
def test_the_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, why: str
) -> None:
    assert main(["--ladder", "--requests", "30", "--loads", "0.8", *words]) == code
    assert why in " ".join(capsys.readouterr().err.split())
