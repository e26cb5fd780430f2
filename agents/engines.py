"""Which adapter knows which engine, and what it must be told."""

from __future__ import annotations

from agents.adapters.protocol import EngineAdapter
from agents.adapters.sglang import SglangAdapter, SglangOptions
from agents.adapters.sim import SimAdapter
from agents.adapters.trtllm import TrtllmAdapter, TrtllmOptions
from agents.adapters.vllm import VllmAdapter, VllmOptions
from agents.settings import AgentSettings
from proto.wire.ports import Frames, Http


def make_adapter(settings: AgentSettings, http: Http, frames: Frames) -> EngineAdapter:
    """The one that knows this engine's dialect."""
    match settings.engine:
        case "sglang":
            return SglangAdapter(http, frames, _sglang(settings))
        case "trtllm":
            return TrtllmAdapter(http, _trtllm(settings))
        case "sim":
            return SimAdapter(http, frames, _vllm(settings))
        case "vllm":
            return VllmAdapter(http, frames, _vllm(settings))


def _vllm(settings: AgentSettings) -> VllmOptions:
    return VllmOptions(
        url=settings.engine_url,
        events=settings.events if settings.kv_events else None,
        replay=settings.replay,
        rank=settings.rank,
        model_directory=settings.model_directory,
        max_batched_tokens=settings.max_batched_tokens,
        max_running=settings.max_running,
        transfer=settings.kv_transfer,
        trust_version=settings.trust_version or settings.engine == "sim",
    )


def _sglang(settings: AgentSettings) -> SglangOptions:
    return SglangOptions(
        url=settings.engine_url,
        events=settings.events,
        replay=settings.replay,
        rank=settings.rank,
        model_directory=settings.model_directory,
        kv_events=settings.kv_events,
        transfer=settings.kv_transfer,
        trust_version=settings.trust_version,
    )


def _trtllm(settings: AgentSettings) -> TrtllmOptions:
    return TrtllmOptions(
        url=settings.engine_url,
        context_tokens=settings.context_tokens,
        model_directory=settings.model_directory,
        max_batched_tokens=settings.max_batched_tokens,
        max_running=settings.max_running,
        transfer=settings.kv_transfer,
        kv_events=settings.kv_events,
        trust_version=settings.trust_version,
    )
