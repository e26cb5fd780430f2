from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread

from controlplane.replay.plot import save
from controlplane.replay.report import (
    Outcome,
    Report,
    Run,
    Setting,
    Status,
    Targets,
    policy_report,
    trace_report,
)
from controlplane.replay.trace import Trace, TraceRequest

TARGETS = Targets(ttft_ms=5_000, tpot_ms=100)
VIRTUAL: dict[str, Setting] = {"workers": 2, "profile": "laptop"}
LIVE: dict[str, Setting] = {"url": "http://127.0.0.1:8000", "speed": 2.5}
SERVED = [Outcome(Status.COMPLETED, 10.0 * n, n / 3, 10, n % 10) for n in range(1, 200)]


@pytest.mark.parametrize(
    ("outcomes", "settings"),
    [
        (SERVED, VIRTUAL),
        (SERVED[:1], LIVE),
        ([Outcome(Status.COMPLETED, 5.0)], VIRTUAL),
        ([Outcome(Status.REJECTED)], VIRTUAL),
    ],
    ids=["many", "one, live", "one token", "none served"],
)
def test_any_outcome_can_be_drawn(
    tmp_path: Path, outcomes: list[Outcome], settings: dict[str, Setting]
) -> None:
    runs = [Run(f"policy_{i}", outcomes, None) for i in range(8)]
    report = Report(
        {run.policy: policy_report(run, 0.4, TARGETS) for run in runs},
        trace_report(Trace("t.jsonl", [TraceRequest(0.0, 1, 1, (1,))])),
        settings,
    )
    path = tmp_path / "plot.png"
    save(path, report, runs, TARGETS)
    pixels = imread(path)
    assert pixels.shape[:2] == (1050, 1650)
    assert pixels.std() > 0.1
