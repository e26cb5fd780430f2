"""`sglang serve`. By its manual (0.5), not run: it needs a GPU."""

from __future__ import annotations

import json

from workers.launch.spec import CannotLaunch, Command, EngineSpec, Phase


def command(program: str, spec: EngineSpec) -> Command:
    """Raises `CannotLaunch`."""
    if not spec.accelerated:
        raise CannotLaunch("SGLang needs a GPU, and there is none; on a CPU take --engine vllm")
    if spec.kv_cache_bytes:
        raise CannotLaunch(
            "SGLang takes no size of its KV cache in bytes; see --mem-fraction-static"
        )
    argv = [
        *(program, "serve", "--model-path", spec.model, "--served-model-name", spec.served),
        *("--host", spec.host, "--port", str(spec.ports.http)),
        *("--kv-events-config", json.dumps(_events(spec))),
        "--enable-metrics",
        "--enable-cache-report",
    ]
    if spec.block_tokens:
        argv += ["--page-size", str(spec.block_tokens)]
    if spec.context_tokens:
        argv += ["--context-length", str(spec.context_tokens)]
    if spec.ranks > 1:
        argv += ["--dp-size", str(spec.ranks)]
    if spec.phase is not Phase.AGGREGATED:
        argv += [
            *("--disaggregation-mode", spec.phase.value),
            *("--disaggregation-transfer-backend", "nixl"),
            *("--disaggregation-bootstrap-port", str(spec.ports.side)),
        ]
    return Command((*argv, *spec.extra))


def _events(spec: EngineSpec) -> dict[str, object]:
    return {
        "publisher": "zmq",
        "endpoint": f"tcp://*:{spec.ports.events}",
        "replay_endpoint": f"tcp://*:{spec.ports.replay}",
    }
