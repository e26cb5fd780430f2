"""Real engines in the plan of a local cluster; none is started here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from controlplane.local import engines
from controlplane.local.engines import EngineMissing
from controlplane.local.layout import Layout
from controlplane.local.options import ClusterOptions
from controlplane.local.plan import Part, Ports
from controlplane.runtime.settings import load

KV_TRANSFER = "TOKENPLANE_AGENT__KV_TRANSFER"
LAYOUT = Layout(Path("/run/tokenplane"))


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "vllm"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> str:
    directory = tmp_path / "llama"
    directory.mkdir()
    return str(directory)


def planned(options: ClusterOptions) -> dict[str, Part]:
    engine = engines.find_engine(options)
    assert engine is not None
    engine = replace(engine, accelerated=False)  # whatever this machine has
    ports = Ports.assign(options, range(20_000, 20_000 + Ports.needed(options)))
    return {part.name: part for part in engines.parts(engine, options, LAYOUT, ports)}


def port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def test_each_engine_has_an_agent_that_knows_its_sockets_and_its_model(
    program: str, model: str
) -> None:
    parts = planned(ClusterOptions(engine="vllm", engine_program=program, model=model, engines=2))
    assert list(parts) == ["engine-0", "agent-0", "engine-1", "agent-1"]
    agent, engine = parts["agent-1"].environment, parts["engine-1"].argv
    assert agent["TOKENPLANE_AGENT__ENGINE"] == "vllm"
    assert agent["TOKENPLANE_AGENT__MODEL_DIRECTORY"] == model
    assert engine[engine.index("--served-model-name") + 1] == "llama"
    assert engine[engine.index("--port") + 1] in agent["TOKENPLANE_AGENT__ENGINE_URL"]
    config = json.loads(engine[engine.index("--kv-events-config") + 1])
    for told, bound in (("EVENTS", "endpoint"), ("REPLAY", "replay_endpoint")):
        assert port(agent[f"TOKENPLANE_AGENT__{told}"]) == port(config[bound])


def test_roles_make_as_many_engines_and_tell_their_agents(program: str, model: str) -> None:
    parts = planned(
        ClusterOptions(engine="vllm", engine_program=program, model=model, roles="1P1D")
    )
    roles = [parts[f"agent-{i}"].environment["TOKENPLANE_AGENT__ROLE"] for i in range(2)]
    assert roles == ["prefill", "decode"]
    told = [json.loads(parts[f"agent-{i}"].environment[KV_TRANSFER]) for i in range(2)]
    assert [each["connector"] for each in told] == ["nixl", "nixl"]
    assert "--kv-transfer-config" in parts["engine-0"].argv


def test_n_is_short_for_engines() -> None:
    assert load(ClusterOptions, ["-n", "2"]).engines == 2


def test_what_is_missing_is_said_before_anything_starts(model: str, program: str) -> None:
    with pytest.raises(EngineMissing, match="to get vllm"):
        engines.find_engine(ClusterOptions(engine="vllm", model=model, engine_program="nowhere"))
    with pytest.raises(EngineMissing, match="--context-tokens"):
        engines.find_engine(ClusterOptions(engine="trtllm", model=model, engine_program=program))
    with pytest.raises(ValidationError, match="needs --model"):
        ClusterOptions(engine="vllm")
    with pytest.raises(ValidationError, match="leave out --engines"):
        ClusterOptions(roles="1P1D", engines=3)
    with pytest.raises(EngineMissing, match="not 16"):
        planned(ClusterOptions(engine="vllm", engine_program=program, model=model, block_tokens=16))
