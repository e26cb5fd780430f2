"""`python -m agents`: the agent beside one engine, as a process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from agents.agent import AgentService
from agents.engines import make_adapter
from agents.settings import AgentProcess
from controlplane.runtime.process import Kit, run_command


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


if __name__ == "__main__":
    sys.exit(main())
