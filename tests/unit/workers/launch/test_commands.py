"""What is run for each engine, word by word where a word is easy to get wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workers.launch import engines
from workers.launch.spec import (
    CannotLaunch,
    Command,
    Connector,
    EngineKind,
    EnginePorts,
    EngineSpec,
    Phase,
)

SPEC = EngineSpec(model="/m/llama", served="llama", ports=EnginePorts(8000, 5557, 5657, 5600))
HERE = Path("/run/tokenplane")


def command(kind: EngineKind, spec: EngineSpec) -> Command:
    return engines.command(kind, "/bin/engine", spec, HERE)


def option(started: Command, name: str) -> str:
    return started.argv[started.argv.index(name) + 1]


@pytest.mark.parametrize("kind", [EngineKind.VLLM, EngineKind.SGLANG])
def test_events_and_replay_have_ports_of_their_own(kind: EngineKind) -> None:
    config = json.loads(option(command(kind, SPEC), "--kv-events-config"))
    assert config["publisher"] == "zmq"
    assert config["endpoint"] == "tcp://*:5557"
    assert config["replay_endpoint"] == "tcp://*:5657"


@pytest.mark.parametrize("kind", [EngineKind.VLLM, EngineKind.SGLANG])
def test_clients_call_the_model_by_the_served_name(kind: EngineKind) -> None:
    assert option(command(kind, SPEC), "--served-model-name") == "llama"


def test_vllm_on_a_cpu_gets_blocks_that_it_can_take() -> None:
    started = command(EngineKind.VLLM, replace(SPEC, accelerated=False))
    assert option(started, "--block-size") == "32"
    assert "--enforce-eager" in started.argv
    assert started.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    with pytest.raises(CannotLaunch, match="32 tokens or a multiple, and not 16"):
        command(EngineKind.VLLM, replace(SPEC, accelerated=False, block_tokens=16))


def test_vllm_on_a_gpu_keeps_its_own_sizes() -> None:
    started = command(EngineKind.VLLM, SPEC)
    assert not {"--block-size", "--kv-cache-memory-bytes", "--dtype"} & set(started.argv)


def test_two_vllms_hand_over_through_nixl_each_on_a_side_channel_and_a_core() -> None:
    spec = replace(SPEC, phase=Phase.PREFILL, accelerated=False, core=1)
    started = command(EngineKind.VLLM, spec)
    assert started.argv[:3] == ("taskset", "-c", "1")
    assert json.loads(option(started, "--kv-transfer-config")) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_buffer_device": "cpu",
    }
    assert started.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5600"
    assert "tcp" in started.environment["UCX_TLS"]


def test_an_engine_that_was_given_a_core_stays_there_whatever_it_wants() -> None:
    core = min(os.sched_getaffinity(0))
    started = command(EngineKind.VLLM, replace(SPEC, accelerated=False, core=core))
    wander = "import os; os.sched_setaffinity(0, {99}); print(*os.sched_getaffinity(0))"
    ended = subprocess.run(
        [*started.argv[:3], sys.executable, "-c", wander],
        env={**os.environ, **started.environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == [str(core)]


def test_two_vllms_hand_over_through_a_shared_directory() -> None:
    spec = replace(SPEC, phase=Phase.DECODE, connector=Connector.SHARED)
    with pytest.raises(CannotLaunch, match="directory"):
        command(EngineKind.VLLM, spec)
    started = command(EngineKind.VLLM, replace(spec, shared_directory=HERE / "kv"))
    config = json.loads(option(started, "--kv-transfer-config"))
    assert config["kv_connector_extra_config"] == {"shared_storage_path": "/run/tokenplane/kv"}


def test_sglang_meets_at_the_prefill_engines_bootstrap_server() -> None:
    started = command(EngineKind.SGLANG, replace(SPEC, phase=Phase.PREFILL))
    assert option(started, "--disaggregation-mode") == "prefill"
    assert option(started, "--disaggregation-bootstrap-port") == "5600"


def test_trtllm_finds_in_a_file_what_its_command_line_has_no_words_for() -> None:
    started = command(EngineKind.TRTLLM, replace(SPEC, block_tokens=64, phase=Phase.DECODE))
    ((file, text),) = started.files.items()
    assert option(started, "--config") == str(file)
    assert option(started, "--server_role") == "generation"
    configuration = json.loads(text)
    assert configuration["kv_cache_config"]["tokens_per_block"] == 64
    assert configuration["kv_cache_config"]["event_buffer_max_size"] > 0
    assert configuration["enable_iter_perf_stats"]
    assert not started.events  # it is asked for them over HTTP


def test_the_users_own_words_come_last() -> None:
    for kind in EngineKind:
        assert command(kind, replace(SPEC, extra=("--seed", "7"))).argv[-2:] == ("--seed", "7")


@pytest.mark.parametrize("kind", [EngineKind.SGLANG, EngineKind.TRTLLM])
def test_what_needs_a_gpu_says_so_and_names_what_does_not(kind: EngineKind) -> None:
    with pytest.raises(CannotLaunch, match="--engine vllm"):
        command(kind, replace(SPEC, accelerated=False))


@pytest.mark.parametrize("kind", list(EngineKind))
def test_an_engine_that_is_not_installed_is_named_with_the_way_to_get_it(
    kind: EngineKind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotLaunch, match=r"install .* --engine-program") as caught:
        engines.find_program(kind)
    assert "\n" not in str(caught.value)


def test_a_vllm_that_make_built_is_found_without_being_on_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / ".venv-vllm" / "bin" / "vllm"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(tmp_path)
    assert engines.find_program(EngineKind.VLLM) == str(program)
