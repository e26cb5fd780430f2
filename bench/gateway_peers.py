"""Other gateways, each in an environment of its own, in front of the same engines.

`make bench-peers` builds the environments below `.venv-peers`; what is not there is left out.
Dynamo's frontend only speaks to Dynamo's own workers, so it has those: its mocker, at a thousand
times the speed of the accelerator that it mocks.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.rig import Rig
from bench.stream_engine import MODEL
from controlplane.local.ports import LOOPBACK, free_ports

ROOT = Path(__file__).parents[1] / ".venv-peers"
SGLANG, VLLM, LITELLM, DYNAMO = "sglang-router", "vllm-router", "litellm", "dynamo"


@dataclass(frozen=True)
class Side:
    """Who is asked: where, and which processes' time it costs."""

    port: int
    processes: tuple[str, ...]
    token_ids: bool = True
    """Whether prompts of token ids are understood."""
    metrics: str = ""
    """Where it tells of its event loop, if it does."""


Starter = Callable[[Rig, Path, Sequence[str], Path], Awaitable[Side]]


def installed(name: str) -> bool:
    """Whether the peer's environment is there."""
    return (ROOT / name / "bin" / "python").exists()


async def start(rig: Rig, name: str, engines: Sequence[str], model: Path) -> Side:
    """Start a peer in front of engines, given by their URLs. Raises `ChildFailed`."""
    return await _STARTERS[name](rig, ROOT / name / "bin", engines, model)


async def _sglang(rig: Rig, at: Path, engines: Sequence[str], model: Path) -> Side:
    del model
    port, metrics = free_ports(2)
    argv = (str(at / "python"), "-m", "sglang_router.launch_router", "--host", LOOPBACK)
    return await _rust_router(rig, SGLANG, argv, port, metrics, engines)


async def _vllm(rig: Rig, at: Path, engines: Sequence[str], model: Path) -> Side:
    del model
    port, metrics = free_ports(2)
    return await _rust_router(rig, VLLM, (str(at / "vllm-router"),), port, metrics, engines)


async def _rust_router(
    rig: Rig, name: str, argv: Sequence[str], port: int, metrics: int, engines: Sequence[str]
) -> Side:
    words = (*argv, "--port", str(port), "--prometheus-port", str(metrics), "--worker-urls")
    more = ("--policy", "cache_aware", "--log-level", "warning" if name == VLLM else "warn")
    await rig.start(name, (*words, *engines, *more), f"http://{LOOPBACK}:{port}/health", {})
    return Side(port, (name,), token_ids=False)


async def _litellm(rig: Rig, at: Path, engines: Sequence[str], model: Path) -> Side:
    [port] = free_ports(1)
    config = model / "litellm.json"  # JSON is YAML
    entries = [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": f"openai/{MODEL}",
                "api_base": f"{engine}/v1",
                "api_key": "none",
            },
        }
        for engine in engines
    ]
    # One that was asked for more than it can do would refuse everything for a while afterwards.
    calm = {"disable_cooldowns": True, "num_retries": 0}
    config.write_text(json.dumps({"model_list": entries, "router_settings": calm}))
    words = (str(at / "litellm"), "--config", str(config), "--host", LOOPBACK, "--port", str(port))
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    await rig.start(LITELLM, words, f"http://{LOOPBACK}:{port}/health/liveliness", quiet)
    return Side(port, (LITELLM,), token_ids=False)


async def _dynamo(rig: Rig, at: Path, engines: Sequence[str], model: Path) -> Side:
    [port] = free_ports(1)
    _as_llama(model)
    python, files = str(at / "python"), ("--discovery-backend", "file")
    calm: Mapping[str, str] = {
        "DYN_LOG": "error",
        "DYN_FILE_KV": str(model / "dynamo"),
        "HF_HUB_OFFLINE": "1",
    }
    mocker = (python, "-m", "dynamo.mocker", "--model-path", str(model), "--model-name", MODEL)
    workers = ("--num-workers", str(len(engines)), "--block-size", "16", "--speedup-ratio", "1000")
    frontend = (python, "-m", "dynamo.frontend", "--http-port", str(port), "--router-mode", "kv")
    size = ("--kv-cache-block-size", "16")
    ready = f"http://{LOOPBACK}:{port}/health"
    await rig.start(DYNAMO, (*frontend, *size, *files), ready, dict(calm))
    await rig.start("mocker", (*mocker, *workers, *files), ready, dict(calm))
    return Side(port, (DYNAMO,))


def _as_llama(model: Path) -> None:
    """It wants a model of a kind that it knows; the tokenizer stays."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32_000,
        "hidden_size": 4_096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }
    (model / "config.json").write_text(json.dumps(config))
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    (model / "generation_config.json").write_text(json.dumps(ends))


_STARTERS: Mapping[str, Starter] = {
    SGLANG: _sglang,
    VLLM: _vllm,
    LITELLM: _litellm,
    DYNAMO: _dynamo,
}
NAMES = tuple(_STARTERS)
