"""`trtllm-serve`. By its manual (1.3), not run: it needs a GPU.

What its command line has no words for stands in a file, which is YAML and therefore may be JSON.
"""

from __future__ import annotations

import json
from pathlib import Path

from workers.launch.spec import CannotLaunch, Command, EngineSpec, Phase

EVENTS_KEPT = 16_384
"""Its events wait in a buffer until somebody asks for them; what does not fit is lost."""
ROLES = {Phase.PREFILL: "context", Phase.DECODE: "generation"}


def command(program: str, spec: EngineSpec, directory: Path) -> Command:
    """Its configuration file is to be written into `directory`. Raises `CannotLaunch`."""
    if not spec.accelerated:
        raise CannotLaunch(
            "TensorRT-LLM needs an NVIDIA GPU, and there is none; on a CPU take --engine vllm"
        )
    if spec.ranks > 1:
        raise CannotLaunch("TensorRT-LLM: start one engine for each rank, each with its own agent")
    file = directory / f"trtllm-{spec.ports.http}.yaml"
    argv = [
        *(program, spec.model, "--host", spec.host, "--port", str(spec.ports.http)),
        *("--backend", "pytorch", "--config", str(file)),
    ]
    if spec.context_tokens:
        argv += ["--max_seq_len", str(spec.context_tokens)]
    if spec.phase in ROLES:
        argv += ["--server_role", ROLES[spec.phase]]
    return Command(
        (*argv, *spec.extra), files={file: json.dumps(_configuration(spec), indent=2)}, events=False
    )


def _configuration(spec: EngineSpec) -> dict[str, object]:
    cache: dict[str, object] = {
        "enable_block_reuse": True,
        "event_buffer_max_size": EVENTS_KEPT,
    }
    if spec.block_tokens:
        cache["tokens_per_block"] = spec.block_tokens
    if spec.kv_cache_bytes:
        cache["max_gpu_total_bytes"] = spec.kv_cache_bytes
    configuration: dict[str, object] = {
        "kv_cache_config": cache,
        "enable_iter_perf_stats": True,
        "return_perf_metrics": True,
    }
    if spec.phase is not Phase.AGGREGATED:
        configuration["cache_transceiver_config"] = {"backend": "DEFAULT"}
        # Blocks that were handed over must not be overtaken by the next batch's.
        configuration["disable_overlap_scheduler"] = spec.phase is Phase.PREFILL
    return configuration
