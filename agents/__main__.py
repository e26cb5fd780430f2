"""`python -m agents`: the agent beside one engine, as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.adapters.sim import SimAdapter
from agents.adapters.vllm import VllmAdapter, VllmOptions
from agents.agent import AgentService
from agents.settings import AgentProcess, AgentSettings
from controlplane.runtime.process import Kit, run_command
from proto.wire.ports import Frames, Http


def main(argv: Sequence[str] | None = None) -> int:
    """Run until stopped; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    return run_command("agent", AgentProcess, build, argv, prog="tokenplane-agent")


def build(settings: AgentProcess, kit: Kit) -> list[AgentService]:
    """The one service of this process, on its real carriers."""
    carriers = kit.carriers
    adapter = make_adapter(settings.agent, carriers.http, carriers.frames)
    agent = AgentService(settings, adapter, carriers.bus, carriers.store, kit.metrics)
    kit.readiness.require("no healthy engine is registered", lambda: agent.serving)
    return [agent]


def make_adapter(settings: AgentSettings, http: Http, frames: Frames) -> VllmAdapter:
    """Every kind of engine so far speaks vLLM's dialect."""
    kind = SimAdapter if settings.engine == "sim" else VllmAdapter
    options = VllmOptions(
        url=settings.engine_url,
        events=settings.events,
        replay=settings.replay,
        rank=settings.rank,
        model_directory=settings.model_directory,
        max_batched_tokens=settings.max_batched_tokens,
        max_running=settings.max_running,
        transfer=settings.kv_transfer,
    )
    return kind(http, frames, options)


if __name__ == "__main__":
    sys.exit(main())
