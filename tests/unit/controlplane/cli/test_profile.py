"""`tokenplane profile` measures a running engine, and a planner begins with what it has written."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from controlplane.capacity import Capacities
from controlplane.cli.profile import main
from controlplane.planner.profile import Profile, read
from proto.ids import WorkerId
from proto.workers import Hardware, WorkerRecord
from tests.unit.workers.sim_process import sim

FAST = ("--profile", "h100-llama2-70b-tp8", "--speed", "20")


def test_a_planner_begins_with_what_was_measured_of_a_running_engine(tmp_path: Path) -> None:
    out = tmp_path / "profile.json"
    small = ("--longest", "512", "--batch", "4", "--tokens", "16", "--hardware", "h100")
    with sim(*FAST) as engine:
        assert main(["--url", engine.url, "--model", "sim", "--out", str(out), *small]) == 0
    found = msgspec.json.decode(out.read_bytes(), type=Profile)
    assert [each.prompt_tokens for each in found.prompts] == [64, 128, 256, 512]
    measured = [(each.batch, each.context_tokens - each.tokens // 2) for each in found.answers]
    assert measured == [(batch, context) for context in (256, 512) for batch in (1, 2, 4)]
    capacities = Capacities()
    capacities.restore(read(out.read_bytes()))
    told = found.worker_class
    record = WorkerRecord(
        worker=WorkerId("w"),
        incarnation=1,
        model="sim",
        engine="vllm",
        engine_version=told.engine_version,
        url=engine.url,
        total_blocks=1_000,
        block_tokens=16,
        hardware=Hardware(profile="h100", accelerators=1),
    )
    assert told.engine_version, "as the engine says itself"
    curve = capacities.curve(record)
    assert curve == found.curve
    assert curve.decode_base_ms > 0 and curve.prefill_token_ms > 0


def test_an_engine_that_is_not_there_or_serves_another_model_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "profile.json"
    with sim(*FAST) as engine:
        assert main(["--url", engine.url, "--model", "other", "--out", str(out)]) == 1
    assert "the engine answered with 404" in capsys.readouterr().err
    assert main(["--url", engine.url, "--model", "sim", "--out", str(out)]) == 1
    assert "cannot be measured" in capsys.readouterr().err
    assert not out.exists()
