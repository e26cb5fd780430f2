"""`vllm serve`, on GPUs or on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

from workers.launch.spec import CannotLaunch, Command, Connector, EngineSpec, Phase

CPU_BLOCK_MULTIPLE = 32
"""Its attention on a CPU takes blocks of so many tokens, or a multiple."""
CPU_KV_CACHE_BYTES = 256 << 20

TOLD_TO_STOP = "--enable-scale-out"
"""Lets an agent end a request by its id. Only where the release is known to have it: an older vLLM
would not start. Without it, closing the request's connection ends it."""
QUIET = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
STAY = Path(__file__).with_name("stay")
"""On PYTHONPATH it keeps an engine on its core."""


def command(program: str, spec: EngineSpec) -> Command:
    """Raises `CannotLaunch`."""
    kept, environment = _kept_on(spec.core)
    argv = [
        *kept,
        *(program, "serve", spec.model, "--served-model-name", spec.served),
        *("--host", spec.host, "--port", str(spec.ports.http)),
        "--enable-prefix-caching",
        *("--kv-events-config", json.dumps(_events(spec))),
        *_sizes(spec),
    ]
    environment |= QUIET
    if spec.ranks > 1:
        argv += ["--data-parallel-size", str(spec.ranks)]
    if spec.phase is not Phase.AGGREGATED:
        argv += ["--kv-transfer-config", json.dumps(_transfer(spec))]
        environment |= _side_channel(spec)
    if not spec.accelerated:
        argv += ["--dtype", "float32", "--enforce-eager", TOLD_TO_STOP]
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    return Command((*argv, *spec.extra), environment)


def _kept_on(core: int | None) -> tuple[list[str], dict[str, str]]:
    """Words to put first, and environment, for an engine with a core of its own."""
    if core is None:
        return [], {}
    return ["taskset", "-c", str(core)], {"PYTHONPATH": str(STAY)}


def _events(spec: EngineSpec) -> dict[str, object]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{spec.ports.events}",
        "replay_endpoint": f"tcp://*:{spec.ports.replay}",
    }


def _sizes(spec: EngineSpec) -> list[str]:
    argv = []
    block_tokens, kv_cache_bytes = spec.block_tokens, spec.kv_cache_bytes
    if not spec.accelerated:
        block_tokens = block_tokens or CPU_BLOCK_MULTIPLE
        kv_cache_bytes = kv_cache_bytes or CPU_KV_CACHE_BYTES
        if block_tokens % CPU_BLOCK_MULTIPLE:
            raise CannotLaunch(
                f"vLLM on a CPU takes blocks of {CPU_BLOCK_MULTIPLE} tokens or a multiple, "
                f"and not {block_tokens}"
            )
    if block_tokens:
        argv += ["--block-size", str(block_tokens)]
    if kv_cache_bytes:
        argv += ["--kv-cache-memory-bytes", str(kv_cache_bytes)]
    if spec.context_tokens:
        argv += ["--max-model-len", str(spec.context_tokens)]
    return argv


def _transfer(spec: EngineSpec) -> dict[str, object]:
    if spec.connector is Connector.SHARED:
        if spec.shared_directory is None:
            raise CannotLaunch("the shared connector needs a directory that both engines see")
        where = {"shared_storage_path": str(spec.shared_directory)}
        return {
            "kv_connector": "ExampleConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": where,
        }
    config: dict[str, object] = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
    if spec.lease_s is not None:
        config["kv_connector_extra_config"] = {"kv_lease_duration": spec.lease_s}
    return config if spec.accelerated else {**config, "kv_buffer_device": "cpu"}


def _side_channel(spec: EngineSpec) -> dict[str, str]:
    if spec.connector is Connector.SHARED:
        return {}
    environment = {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": spec.host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(spec.ports.side),
    }
    # Without tcp NIXL finds no backend on a machine without RDMA.
    return environment if spec.accelerated else {**environment, "UCX_TLS": "tcp,sm,self"}
