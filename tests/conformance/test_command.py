"""`tokenplane conformance`, as a user runs it."""

from __future__ import annotations

import json

import pytest

from agents.conformance.checks import CHECKS
from agents.conformance.command import main
from tests.unit.workers.sim_process import free_port, sim


def test_every_check_is_told_and_the_exit_code_is_0(capsys: pytest.CaptureFixture[str]) -> None:
    with sim("--blocks", "64", "--max-model-len", "512", "--speed", "5", events=True) as process:
        endpoints = (
            *("--events", f"tcp://127.0.0.1:{process.events_port}"),
            *("--replay", f"tcp://127.0.0.1:{process.replay_port}"),
        )
        assert main(["--engine", process.url, "--kind", "sim", *endpoints, "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["check"] for each in told] == [check.__name__ for check in CHECKS]


def test_an_engine_without_events_is_told_what_that_costs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with sim("--blocks", "64", "--max-model-len", "512", "--speed", "5") as process:
        assert main(["--engine", process.url, "--kind", "sim"]) == 0
    said = capsys.readouterr().out
    assert "routers can only guess" in said
    assert " 0 failed" in said.splitlines()[-1]


def test_an_engine_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--engine", f"http://127.0.0.1:{free_port()}", "--kind", "vllm"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("tokenplane conformance: GET http://127.0.0.1:")


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", "vllm"]) == 2
    assert "engine" in capsys.readouterr().err
