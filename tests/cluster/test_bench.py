"""The benchmark of whole decisions, with a real router's process on real servers."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from bench import peer
from controlplane.cli.bench import main

pytestmark = pytest.mark.cluster


def test_decisions_are_measured_and_nothing_is_left_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "decision.json"
    assert main(["decision", "--quick", "--json", str(out)]) == 0
    rows = {row["case"]: row for row in json.loads(out.read_text())}
    assert rows["8 workers, tokens | reserve, tokens"]["ours"] > 100
    assert rows["8 workers, tokens | reserve, tokens, p99"]["ours"] > 0
    assert 0 < rows["8 workers, even, load 50%, on the holder"]["ours"] <= 100
    peers = {row["peer"] is not None for case, row in rows.items() if "tokens |" in case}
    assert peers == {peer.installed()}
    assert (peer.HOW_TO_GET_IT in capsys.readouterr().out) is not peer.installed()
    assert psutil.Process().children() == []
