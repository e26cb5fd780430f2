from __future__ import annotations

import sys

import pytest

from agents.__main__ import main
from agents.settings import AgentProcess
from controlplane.runtime.settings import SettingsError, load

NEEDED = ("--agent.worker", "w", "--agent.engine_url", "http://127.0.0.1:8000/")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ("WORKER", "ENGINE", "ENGINE_URL", "EVENTS", "REPLAY"):
        monkeypatch.delenv(f"TOKENPLANE_AGENT__{group}", raising=False)


def loaded(*flags: str) -> AgentProcess:
    return load(AgentProcess, [*NEEDED, *flags], prog="tokenplane-agent")


def test_two_settings_are_enough() -> None:
    agent = loaded().agent
    assert (agent.worker, agent.engine_url) == ("w", "http://127.0.0.1:8000")
    assert (agent.engine, agent.events, agent.load_interval_s) == ("vllm", None, 0.25)


def test_without_them_each_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr().err
    assert "agent.worker" in told
    assert "agent.engine_url" in told


def test_the_environment_of_a_local_cluster_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENPLANE_AGENT__WORKER", "engine-1")
    monkeypatch.setenv("TOKENPLANE_AGENT__ENGINE", "sim")
    monkeypatch.setenv("TOKENPLANE_AGENT__ENGINE_URL", "http://127.0.0.1:8001")
    monkeypatch.setenv("TOKENPLANE_AGENT__EVENTS", "tcp://127.0.0.1:5557")
    monkeypatch.setenv("TOKENPLANE_AGENT__REPLAY", "tcp://127.0.0.1:5558")
    agent = load(AgentProcess, [], prog="tokenplane-agent").agent
    assert (agent.worker, agent.engine, agent.replay) == (
        *("engine-1", "sim", "tcp://127.0.0.1:5558"),
    )


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (("--agent.worker", "a.b"), "worker 'a.b'"),
        (("--agent.engine_url", "127.0.0.1:8000"), "begins with http"),
        (("--agent.events", "tcp://*:5557"), "an address to connect to"),
        (("--agent.replay", "5558"), "an address to connect to"),
        (("--agent.engine", "llamafile"), "'vllm'"),
        (("--agent.role", "both"), "'aggregated'"),
        (("--agent.misses_max", "0"), "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(flags: tuple[str, str], complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        loaded(*flags)


def test_our_agents_package_is_ours() -> None:
    """`openai-agents` installs a top-level `agents` too."""
    assert (sys.modules["agents"].__doc__ or "").startswith("Who listens")
